//! What outlives the daemon: the mount's `/dev/fuse`, and a journal of what the next daemon has to know.
//!
//! A mount lives as long as its descriptor is open somewhere. Whoever keeps it, systemd's descriptor store or a keeper
//! of our own (`daemon::keeper`), also keeps the journal: a sealed piece of memory ([`journal`]) that the daemon writes as it
//! serves, with stores to memory and no system call. A daemon that dies at any instruction leaves both behind, and the
//! next one takes them over ([`store`]). Requests wait meanwhile, and nothing a reader holds is lost.
//!
//! Of two daemons that reach for one mount, one gets it: the journal is locked by the process that serves.

mod descriptors;
pub mod journal;
pub mod memory;
pub mod store;
pub mod workers;

pub(crate) use descriptors::{Kept, replace};
