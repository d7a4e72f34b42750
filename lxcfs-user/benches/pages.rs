//! How long each page takes to make, from numbers in memory: `cargo bench -p lxcfs-user`, for whoever changes a page.
//! Nothing is compared with it in a test: seconds are noisy, and `cargo xtask bench --instructions` counts instead.

#[path = "../testdata/fixture.rs"]
mod fixture;

use criterion::Criterion;
use lxcfs::files;
use lxcfs::model::file::File;

use self::fixture::Fixture;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let fixture = Fixture::new();
    let mut page = Vec::new();
    for file in File::ALL {
        criterion.bench_function(file.path(), |bencher| {
            bencher.iter(|| {
                page.clear();
                files::page(file, &fixture.view(), &mut page).expect("numbers do not break");
                std::hint::black_box(&page);
            });
        });
    }
    criterion.final_summary();
}
