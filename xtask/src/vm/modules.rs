//! The kernel modules a guest gets: a few wanted ones and what they need.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Loaded by the guest's init, where they are not built in.
const AT_BOOT: [&str; 6] = ["fuse", "virtio_pci", "virtio_blk", "overlay", "zram", "loop"];

/// At hand for modprobe and for the kernel's own requests: filesystems, what zram compresses with,
/// the checksum ext4 asks for, what container runtimes want of the network, block io control.
const AT_HAND: [&str; 32] = [
    "8021q",
    "autofs4",
    "bfq",
    "binfmt_misc",
    "br_netfilter",
    "bridge",
    "configfs",
    "crc32c_generic",
    "cuse",
    "dummy",
    "ext4",
    "iptable_filter",
    "iptable_nat",
    "lz4",
    "lzo",
    "lzo_rle",
    "macvlan",
    "nf_conntrack",
    "nf_nat",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "squashfs",
    "tun",
    "veth",
    "virtio_balloon",
    "virtio_net",
    "virtiofs",
    "xt_MASQUERADE",
    "xt_addrtype",
    "xt_conntrack",
    "zstd",
];

/// A module, unpacked.
#[derive(Debug)]
pub(crate) struct Module {
    /// Under `lib/modules/RELEASE`, ending in `.ko`.
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
    needs: Vec<String>,
    aliases: Vec<String>,
}

/// The modules of one image, by name; what is built in is not among them.
#[derive(Debug, Default)]
pub(crate) struct Modules(pub(crate) BTreeMap<String, Module>);

/// A name for the choice made above: another choice is another image.
pub(crate) fn choice() -> String {
    [&AT_BOOT[..], &AT_HAND[..]].concat().join(" ")
}

impl Modules {
    /// Reads the wanted modules from `dir`, the kernel's `lib/modules/RELEASE`; busybox unpacks.
    pub(crate) fn read(dir: &Path, busybox: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        collect(dir, &mut files)?;
        let mut found = Self::default();
        let mut wanted: Vec<String> = AT_BOOT.into_iter().chain(AT_HAND).map(canonical).collect();
        while let Some(name) = wanted.pop() {
            let Some(file) = files.get(&name) else {
                continue;
            };
            if found.0.contains_key(&name) {
                continue;
            }
            let module = Module::read(dir, file, busybox)?;
            wanted.extend(module.needs.iter().cloned());
            found.0.insert(name, module);
        }
        Ok(found)
    }

    /// The paths to load when the guest starts, each after what it needs.
    pub(crate) fn boot_order(&self) -> Vec<&str> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in AT_BOOT {
            self.visit(&canonical(name), &mut seen, &mut order);
        }
        order
    }

    fn visit<'a>(&'a self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<&'a str>) {
        let Some(module) = self.0.get(name) else {
            return;
        };
        if seen.insert(name.to_owned()) {
            for needed in &module.needs {
                self.visit(needed, seen, order);
            }
            order.push(&module.path);
        }
    }

    /// `modules.dep`: each module and all it needs, the nearest first.
    pub(crate) fn dependencies(&self) -> String {
        let lines = self.0.iter().map(|(name, module)| {
            let mut order = Vec::new();
            self.visit(name, &mut BTreeSet::new(), &mut order);
            let needed = order.iter().rev().skip(1).map(|path| format!(" {path}"));
            format!("{}:{}\n", module.path, needed.collect::<String>())
        });
        lines.collect()
    }

    /// `modules.alias`: other names, under which the kernel asks for a module.
    pub(crate) fn aliases(&self) -> String {
        let lines = self.0.iter().flat_map(|(name, module)| {
            module.aliases.iter().map(move |alias| format!("alias {alias} {name}\n"))
        });
        lines.collect()
    }
}

impl Module {
    fn read(dir: &Path, file: &Path, busybox: &Path) -> Result<Self> {
        let content = uncompressed(file, busybox)?;
        let path = file.strip_prefix(dir).unwrap_or(file).to_string_lossy().into_owned();
        let path = path.trim_end_matches(".xz").to_owned();
        let needs = values(&content, "depends=");
        let needs = needs.iter().flat_map(|list| list.split(','));
        let needs = needs.filter(|name| !name.is_empty()).map(canonical).collect();
        let aliases = values(&content, "alias=");
        Ok(Self { path, content, needs, aliases })
    }
}

/// The kernel takes `-` and `_` in a module's name for the same.
fn canonical(name: impl AsRef<str>) -> String {
    name.as_ref().replace('-', "_")
}

/// Every `KEY=VALUE` string of the module information section that starts with `key`.
fn values(module: &[u8], key: &str) -> Vec<String> {
    let strings = module.split(|byte| *byte == 0);
    let values = strings.filter_map(|string| string.strip_prefix(key.as_bytes()));
    values.filter_map(|value| String::from_utf8(value.to_vec()).ok()).collect()
}

/// The file of each module under `dir`, by the module's name.
fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some((name, "ko" | "ko.xz")) =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('.'))
        {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

fn uncompressed(file: &Path, busybox: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|kind| kind != "xz") {
        return fs::read(file).with_context(|| format!("read {}", file.display()));
    }
    let mut unxz = Command::new(busybox);
    let done = unxz.args(["unxz", "-c"]).arg(file).stdin(Stdio::null()).output();
    let done = done.with_context(|| format!("start {}", busybox.display()))?;
    let complaint = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "unpack {}: {complaint}", file.display());
    Ok(done.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, needs: &[&str]) -> Module {
        let needs = needs.iter().map(canonical).collect();
        Module { path: path.to_owned(), content: Vec::new(), needs, aliases: Vec::new() }
    }

    fn modules() -> Modules {
        let all = [
            ("zram", module("zram.ko", &["zsmalloc", "lzo-rle"])),
            ("zsmalloc", module("zsmalloc.ko", &[])),
            ("lzo_rle", module("lzo-rle.ko", &["lzo_compress"])),
            ("lzo_compress", module("lzo_compress.ko", &[])),
            ("veth", module("veth.ko", &[])),
        ];
        Modules(all.into_iter().map(|(name, module)| (name.to_owned(), module)).collect())
    }

    #[test]
    fn a_module_is_loaded_after_what_it_needs() {
        let expected = ["zsmalloc.ko", "lzo_compress.ko", "lzo-rle.ko", "zram.ko"];
        assert_eq!(modules().boot_order(), expected);
    }

    #[test]
    fn dependencies_are_listed_nearest_first() {
        let text = modules().dependencies();
        assert!(text.contains("zram.ko: lzo-rle.ko lzo_compress.ko zsmalloc.ko\n"), "{text}");
        assert!(text.contains("veth.ko:\n"), "{text}");
    }

    #[test]
    fn module_information_is_found_between_zeros() {
        let bytes = b"\x7fELF\0depends=mbcache,jbd2\0alias=fs-ext4\0alias=ext3\0";
        assert_eq!(values(bytes, "depends="), ["mbcache,jbd2"]);
        assert_eq!(values(bytes, "alias="), ["fs-ext4", "ext3"]);
    }
}
