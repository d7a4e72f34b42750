//! What the programs say (`lxcfs-ebpf/src/report.rs`), passed on to our own log.

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};

/// Writes records of `log` as events of `tracing`.
pub(crate) struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        match record.level() {
            Level::Error => tracing::error!(target: "lxcfs::ebpf", "{}", record.args()),
            Level::Warn => tracing::warn!(target: "lxcfs::ebpf", "{}", record.args()),
            Level::Info => tracing::info!(target: "lxcfs::ebpf", "{}", record.args()),
            Level::Debug | Level::Trace => {
                tracing::debug!(target: "lxcfs::ebpf", "{}", record.args());
            }
        }
    }

    fn flush(&self) {}
}

/// The reader of the programs' messages; `None` if the object has none.
pub(crate) fn reader(ebpf: &mut Ebpf) -> Option<EbpfLogger<ToTracing>> {
    EbpfLogger::init_with_logger(ebpf, ToTracing).ok()
}
