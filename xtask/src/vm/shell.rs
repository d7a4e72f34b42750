//! Running other programs: one line of context when one fails.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs `command` to its end and gives its standard output; a failure carries the end of what it
/// complained about.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let hint = || format!("start {name:?} (is it installed?)");
    let done = command.stdin(Stdio::null()).output().with_context(hint)?;
    if !done.status.success() {
        let complaint = String::from_utf8_lossy(&done.stderr);
        let shown = tail(&complaint, 6);
        bail!("{command:?} ended with {}:\n{shown}", done.status);
    }
    String::from_utf8(done.stdout).with_context(|| format!("read what {name:?} printed"))
}

/// The last `lines` lines of `text`.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_complaint() {
        let mut command = Command::new("sh");
        let error = output(command.args(["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("no such thing"), "{text}");
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 9), "a");
    }
}
