//! What tests change of the machine itself, and give back: swap, block devices, settings of the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// A loop device of its own. Dropping it removes it.
#[derive(Debug)]
pub struct Disk {
    device: PathBuf,
    image: PathBuf,
}

impl Disk {
    /// Makes one of `mib` MiB.
    ///
    /// # Errors
    /// Not root, or the kernel has no loop devices.
    pub fn new(mib: usize) -> Result<Self> {
        let image = new_path("image");
        // Written to the end: a hole would be filled on behalf of the container that writes there.
        fs::write(&image, vec![0; mib << 20]).context("write the image of a disk")?;
        let device = run("losetup", &["--find", "--show", text(&image)?]);
        match device {
            Ok(device) => Ok(Self { device: device.trim().into(), image }),
            Err(error) => {
                let _ = fs::remove_file(&image);
                Err(error)
            }
        }
    }

    /// Its path below `/dev`.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Its name in `/proc/diskstats`.
    #[must_use]
    pub fn name(&self) -> String {
        self.device.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Its number, like `7:0`.
    ///
    /// # Errors
    /// sysfs does not have it.
    pub fn number(&self) -> Result<String> {
        let path = format!("/sys/block/{}/dev", self.name());
        Ok(fs::read_to_string(&path).with_context(|| format!("read {path}"))?.trim().to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        crate::wait_for("the loop device to go", || {
            Command::new("losetup")
                .arg("--detach")
                .arg(&self.device)
                .status()
                .is_ok_and(|s| s.success())
        });
        let _ = fs::remove_file(&self.image);
    }
}

/// An ext4 on a disk of its own. Dropping it unmounts it.
#[derive(Debug)]
struct Mounted {
    directory: PathBuf,
    _disk: Disk,
}

impl Mounted {
    fn new(mib: usize) -> Result<Self> {
        let disk = Disk::new(mib)?;
        // Discarding would make holes in the image.
        run("mkfs.ext4", &["-q", "-E", "nodiscard", text(disk.device())?])?;
        let directory = new_path("disk");
        fs::create_dir(&directory).context("make a directory for the disk")?;
        let mounted = Self { directory, _disk: disk };
        run("mount", &["-t", "ext4", text(mounted._disk.device())?, text(&mounted.directory)?])?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        crate::wait_for("the disk to be unmounted", || {
            nix::mount::umount(&self.directory) != Err(nix::errno::Errno::EBUSY)
        });
        let _ = fs::remove_dir(&self.directory);
    }
}

/// A compressed disk in memory. Dropping it removes it.
#[derive(Debug)]
struct Zram {
    number: String,
}

impl Zram {
    fn new(mib: usize) -> Result<Self> {
        let path = "/sys/class/zram-control/hot_add";
        let number = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        let zram = Self { number: number.trim().to_owned() };
        let path = format!("/sys/block/zram{}/disksize", zram.number);
        fs::write(&path, format!("{mib}M")).with_context(|| format!("write {path}"))?;
        Ok(zram)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        crate::wait_for("the zram device to go", || {
            fs::write("/sys/class/zram-control/hot_remove", &self.number).is_ok()
        });
    }
}

/// What swap is on.
#[derive(Debug)]
enum Backing {
    Zram { _zram: Zram },
    File { _disk: Mounted },
}

/// Swap of the machine's. Dropping it turns it off.
#[derive(Debug)]
pub struct Swap {
    path: PathBuf,
    is_on: bool,
    _backing: Backing,
}

impl Swap {
    /// On a compressed disk in memory.
    ///
    /// # Errors
    /// The kernel has no zram.
    pub fn on_zram(mib: usize) -> Result<Self> {
        let zram = Zram::new(mib)?;
        let path = PathBuf::from(format!("/dev/zram{}", zram.number));
        Self::turn_on(path, Backing::Zram { _zram: zram })
    }

    /// In a file of an ext4.
    ///
    /// # Errors
    /// The kernel has no ext4, or mkfs.ext4 is missing.
    pub fn in_a_file(mib: usize) -> Result<Self> {
        let disk = Mounted::new(mib + 16)?;
        let path = disk.directory.join("swap");
        fs::write(&path, vec![0; mib << 20]).context("write the swap file")?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Self::turn_on(path, Backing::File { _disk: disk })
    }

    fn turn_on(path: PathBuf, backing: Backing) -> Result<Self> {
        let mut swap = Self { path, is_on: false, _backing: backing };
        run("mkswap", &[text(&swap.path)?])?;
        run("swapon", &[text(&swap.path)?])?;
        swap.is_on = true;
        Ok(swap)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if self.is_on {
            crate::wait_for("swap to be off", || {
                Command::new("swapoff").arg(&self.path).status().is_ok_and(|s| s.success())
            });
        }
    }
}

/// A setting of the kernel's, below `/sys` or `/proc/sys`. Dropping it sets what was there before.
#[derive(Debug)]
pub struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    /// Sets it.
    ///
    /// # Errors
    /// There is no such setting, or the value is refused.
    pub fn set(path: &str, value: &str) -> Result<Self> {
        let before = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        let setting = Self { path: path.into(), before };
        fs::write(path, value).with_context(|| format!("write {value} to {path}"))?;
        Ok(setting)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        crate::wait_for(&format!("{} to be as before", self.path.display()), || {
            fs::write(&self.path, self.before.trim()).is_ok()
        });
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the temporary directory has an odd name")
}

/// A path nobody else has.
fn new_path(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("lxcfs-test-{}-{number}-{name}", std::process::id()))
}

/// Runs a tool and returns what it prints.
fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("start {program}: is it installed?"))?;
    crate::printed(format!("{program} {arguments:?}"), output)
}
