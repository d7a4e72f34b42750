//! `/proc/pressure/{cpu,io,memory}`: the container's own pressure file, as the kernel prints it (kernel/sched/psi.c).

use super::{View, required};
use crate::error::Result;
use crate::model::file::Resource;
use crate::source::trigger::PressureFile;

/// The kernel renders the page itself; there is nothing to add to it.
pub(super) fn gather(view: &View<'_>, resource: Resource, page: &mut Vec<u8>) -> Result<()> {
    required(view.source.pressure(view.container, resource, page)?, resource.cgroup_file())
}

/// The same file, open for a trigger.
pub(super) fn open(view: &View<'_>, resource: Resource) -> Result<PressureFile> {
    required(view.source.pressure_file(view.container, resource)?, resource.cgroup_file())
}

#[cfg(test)]
mod tests {
    use crate::error::Errno;
    use crate::files::testing::Case;
    use crate::model::file::{File, Resource};
    use crate::source::fake::FakeSource;

    #[test]
    fn the_cgroups_text_is_the_page() {
        let text = "some avg10=1.00 avg60=0.00 avg300=0.00 total=5\n";
        let source = FakeSource { pressure: Some(text.to_owned()), ..FakeSource::default() };
        let page = Case::new(source, &[]).page(File::Pressure(Resource::Io)).unwrap();
        assert_eq!(page, text);
    }

    #[test]
    fn without_a_cgroup_of_its_own_there_is_no_page() {
        let error = Case::new(FakeSource::default(), &[]).page(File::Pressure(Resource::Cpu));
        assert_eq!(error.unwrap_err().errno, Errno::NODATA);
    }
}
