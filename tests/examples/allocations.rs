//! How often the whole road of a read allocates on this machine, from who reads to the bytes of the reply, for a container
//! that is known: `cargo build -p lxcfs-tests && cargo run -p lxcfs-tests --example allocations`, as root. The test `allocations` of lxcfs-user holds
//! what pages allocate; what is beyond that here is for the cgroup files of this machine, which are others on the next.

use std::io::Write as _;

use anyhow::{Result, ensure};
use lxcfs::caller::InitLookup;
use lxcfs::daemon::Rooms;
use lxcfs::files::Policy;
use lxcfs::model::file::File;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::Container;
use lxcfs_tests::counting::{Counting, during};

const PAGES: u64 = 1_000;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> Result<()> {
    let cgroup = Cgroup::new("allocations")?;
    cgroup.limit_memory(128 << 20)?;
    let container = Container::new(&cgroup).spawn(&["sleep", "600"])?;
    let init = container.init();
    let rooms = Rooms::open(Policy::default(), InitLookup::Ask)?;
    let mut out = std::io::stdout().lock();
    for file in File::ALL {
        // The first finds the container and opens its files.
        rooms.road.page(file, init)?;
        let asked = during(|| (0..PAGES).for_each(|_| drop(rooms.road.page(file, init))));
        let (whole, rest) = (asked / PAGES, asked % PAGES);
        writeln!(out, "{:<32} {whole}.{rest:03}", file.path())?;
    }
    let fallbacks = rooms.road.fallbacks().list();
    ensure!(fallbacks.is_empty(), "pages of the host's were counted: {fallbacks:?}");
    Ok(())
}
