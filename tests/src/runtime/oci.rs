//! The bundle of an OCI runtime: `config.json` beside the root filesystem.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{CPUS, ENVIRONMENT, Ground, MEMORY, PERIOD, QUOTA};

/// Makes the bundle of a container that runs `script`, and returns its directory.
///
/// # Errors
/// It cannot be written.
pub fn bundle(ground: &Ground, script: &str) -> Result<PathBuf> {
    let directory = ground.directory().to_owned();
    let text = serde_json::to_vec_pretty(&config(ground, script))?;
    fs::write(directory.join("config.json"), text).context("write config.json")?;
    Ok(directory)
}

fn config(ground: &Ground, script: &str) -> Value {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
               "options": ["nosuid", "noexec", "nodev", "ro"]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
               "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}),
    ];
    mounts.extend(ground.binds().map(|(from, to)| {
        json!({"destination": to, "type": "bind", "source": from,
               "options": ["bind", "ro", "nosuid", "nodev"]})
    }));
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", script],
            "env": ENVIRONMENT,
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": {"path": ground.root(), "readonly": true},
        "hostname": "box",
        "mounts": mounts,
        "linux": {
            "cgroupsPath": format!("/{}", ground.name()),
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": MEMORY},
                "cpu": {"quota": QUOTA, "period": PERIOD, "cpus": CPUS, "mems": "0"},
            },
            "namespaces": namespaces.map(|kind| json!({"type": kind})),
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    })
}
