//! Makes the page of a file many times over from numbers in memory: `pages FILE COUNT`. To be run under a counter of
//! instructions or a profiler: what is between two counts is the page and nothing else.

#[path = "../testdata/fixture.rs"]
mod fixture;

use lxcfs::error::{Errno, Error, Result};
use lxcfs::files;
use lxcfs::model::file::File;

use self::fixture::Fixture;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = |what| Error::because("read", "the command line", Errno::INVAL, what);
    let file: File = arguments.next().and_then(|file| file.parse().ok()).ok_or(usage("no FILE"))?;
    let count = arguments.next().and_then(|count| count.parse::<u32>().ok());
    let count = count.ok_or(usage("no COUNT"))?;
    let fixture = Fixture::new();
    let mut page = Vec::new();
    for _ in 0..count {
        page.clear();
        files::page(file, &fixture.view(), &mut page)?;
        std::hint::black_box(&page);
    }
    Ok(())
}
