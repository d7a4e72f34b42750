//! Why this kernel, or this process, cannot have the programs.

/// Why the programs cannot be used here; one line for `lxcfs status`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("no permission: eBPF needs CAP_SYS_ADMIN, or CAP_BPF and CAP_PERFMON")]
    NotPermitted,
    #[error("the kernel is locked down (confidentiality): programs may not read its memory")]
    LockedDown,
    #[error("no kernel type information: {0}")]
    NoTypes(String),
    #[error("no cgroup hierarchy with CPU accounting is mounted")]
    NoHierarchy,
    #[error("this kernel has no {0}")]
    Missing(&'static str),
    #[error("`{structure}.{path}` is {bytes} bytes long here, which the programs cannot read")]
    Size { structure: &'static str, path: &'static str, bytes: u32 },
}
