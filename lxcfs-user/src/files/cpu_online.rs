//! `/sys/devices/system/cpu/online`: the CPUs shown, as a list (kernel: drivers/base/cpu.c).

use std::io::Write;

use super::View;
use crate::error::Result;
use crate::model::cpus::CpuSet;

pub(super) fn gather(view: &View<'_>) -> Result<CpuSet> {
    Ok(view.cpus()?.set())
}

pub(super) fn render(online: &CpuSet, page: &mut Vec<u8>) {
    let _ = writeln!(page, "{online}");
}

#[cfg(test)]
mod tests {
    use crate::files::testing::Case;
    use crate::model::cpus::{Bandwidth, CpuSet, CpuView};
    use crate::model::file::File;
    use crate::source::fake::FakeSource;

    #[test]
    fn the_list_follows_the_view() {
        let source = FakeSource {
            cpuset: CpuSet::parse(b"2-3,6"),
            bandwidth: Some(Bandwidth { quota_us: 150_000, period_us: 100_000 }),
            ..FakeSource::default()
        };
        let mut case = Case::new(source, &[(File::CpuOnline, "0-7\n")]);
        for (view, want) in
            [(CpuView::Cpuset, "2-3,6\n"), (CpuView::Quota, "0-1\n"), (CpuView::Host, "0-7\n")]
        {
            case.policy.cpu_view = view;
            assert_eq!(case.page(File::CpuOnline).unwrap(), want);
        }
    }
}
