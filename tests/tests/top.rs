//! `lxcfs top`: every container with its own numbers, on paper, for programs and on a terminal.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::Container;
use lxcfs_tests::mount::Daemon;
use serde_json::Value;

/// The object of the container with this init.
fn of(json: &Value, init: u32) -> Result<&Value> {
    let containers = json["containers"].as_array().context("no containers")?;
    containers.iter().find(|container| container["init"] == init).with_context(|| json.to_string())
}

#[test]
fn a_busy_container_and_an_idle_one() -> Result<()> {
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    let (busy, idle) = (Cgroup::new("busy")?, Cgroup::new("idle")?);
    busy.limit_memory(64 << 20)?;
    busy.limit_cpu(50_000, 100_000)?;
    let mut running = Container::new(&busy).shell()?;
    let sleeping = Container::new(&idle).shell()?;
    running.say("(while :; do :; done) > /dev/null &")?;
    let mount_point = daemon.mount_point();
    let mount_point = mount_point.to_str().context("not UTF-8")?;

    let output = daemon.run(&["top", mount_point, "--once", "--json", "--interval", "2"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout)?;
    let (worker, sleeper) = (of(&json, running.init())?, of(&json, sleeping.init())?);
    let number = |of: &Value, name: &str| of[name].as_u64().with_context(|| of.to_string());
    // Half a CPU at most; how much of that there is, the host's other work decides.
    let used = number(worker, "cpu_ns_per_s")?;
    ensure!((50_000_000..550_000_000).contains(&used), "{worker}");
    ensure!(number(sleeper, "cpu_ns_per_s")? < 50_000_000, "{sleeper}");
    ensure!(number(worker, "threads")? == 2 && number(sleeper, "threads")? == 1, "{json}");
    ensure!(number(worker, "memory_limit_bytes")? == 64 << 20, "{worker}");
    ensure!(sleeper["memory_limit_bytes"].is_null(), "{sleeper}");
    ensure!(number(worker, "throttled_ns")? > 0, "{worker}");
    ensure!(worker["cgroup"].as_str().context("no name")?.contains("busy"), "{worker}");

    let output = daemon.run(&["top", mount_point, "--once", "--interval", "0.5"])?;
    let text = String::from_utf8(output.stdout)?;
    let rows: Vec<_> = text.lines().skip(3).collect();
    let position = |init: u32| {
        let is_row = |row: &&str| row.split_whitespace().next() == Some(&*init.to_string());
        rows.iter().position(is_row).with_context(|| text.clone())
    };
    ensure!(position(running.init())? < position(sleeping.init())?, "the busiest first: {text}");
    Ok(())
}

#[test]
fn the_screen_shows_containers_and_leaves_the_terminal_as_it_was() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("screen")?;
    let _container = Container::new(&cgroup).shell()?;
    let command = format!(
        "stty cols 200 rows 30; {} top {}{} --interval 0.5; echo ended with $?; stty -a",
        lxcfs_tests::program("lxcfs").display(),
        daemon.mount_point().display(),
        daemon.runtime_option()
    );
    let mut script = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start script(1)")?;
    std::thread::sleep(lxcfs_tests::patience(Duration::from_millis(1_500)));
    let mut keys = script.stdin.take().context("stdin is piped")?;
    keys.write_all(b"mlncjkq")?;
    keys.flush()?;
    let output = script.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("CONTAINER") && text.contains("screen"), "{text}");
    ensure!(text.contains("ended with 0"), "{text}");
    let after = &text[text.find("ended with").context("no end")?..];
    ensure!(after.contains(" icanon") && after.contains(" echo "), "{after}");
    Ok(())
}

#[test]
fn bad_input_is_said() -> Result<()> {
    let daemon = Daemon::start()?;
    for (arguments, word) in [
        (["top", "/nonexistent", "--once"], "no lxcfs is running there"),
        (["top", "--interval", "0"], "from 0.1 to 3600"),
        (["top", "--interval", "x"], "not a number"),
        (["top", "--sort", "colour"], "possible values"),
    ] {
        let output = daemon.run(&arguments)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && stderr.contains(word), "{arguments:?}: {stderr}");
    }
    Ok(())
}
