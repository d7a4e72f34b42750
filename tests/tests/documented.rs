//! FILES.md says what every line is: each line a container is served has its row there, and none of a row that says absent.

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::{Cgroup, is_pure_v2};
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::mount::Daemon;

/// In the binary, for it also runs where the checkout is not.
const DOCUMENT: &str = include_str!("../../FILES.md");

/// A row: the names in its first cell, and whether the others say that the line is left out.
#[derive(Debug)]
struct Row {
    names: Vec<String>,
    is_absent: bool,
}

/// The rows of the tables in the section of `path`.
fn rows(document: &str, path: &str, layout: &str) -> Result<Vec<Row>> {
    let start =
        document.find(&format!("\n## {path}\n")).with_context(|| format!("no ## {path}"))?;
    let section = &document[start + 4..];
    let section = &section[..section.find("\n## ").unwrap_or(section.len())];
    let mut header: Vec<&str> = Vec::new();
    let mut rows = Vec::new();
    for line in section.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.trim_matches('|').split(" |").map(str::trim).collect();
        if ["line", "file", "field", "column", "line or column"].contains(&cells[0]) {
            header = cells;
            continue;
        }
        let says_absent = |(name, cell): (&&str, &&str)| {
            (*name == "value" || *name == layout)
                && cell.starts_with("absent")
                && !cell.starts_with("absent without")
        };
        let is_absent = header.iter().zip(&cells).any(says_absent);
        let names = cells[0].replace('`', "");
        rows.push(Row { names: names.split(", ").map(generic).collect(), is_absent });
    }
    Ok(rows)
}

/// The name with `#` for the number of a unit, where it stands for every unit.
fn generic(name: &str) -> String {
    let units = ["cpuN", "cpuM", "nodeN", "nodeM", "indexN", "memoryN", "accessN"];
    units.iter().fold(name.to_owned(), |name, unit| {
        name.replace(unit, &format!("{}#", &unit[..unit.len() - 1]))
    })
}

/// The path or name with its numbers replaced.
fn without_numbers(name: &str) -> String {
    let mut text: String = name.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
    while text.contains("##") {
        text = text.replace("##", "#");
    }
    text
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => {
            let rest = name.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail));
            rest.is_some_and(|rest| !rest.is_empty())
        }
    }
}

/// The one place where the document and the container meet.
struct Check {
    document: &'static str,
    layout: &'static str,
    container: Running,
}

impl Check {
    fn new(daemon: &Daemon, cgroup: &Cgroup) -> Result<Self> {
        Ok(Self {
            document: DOCUMENT,
            layout: if is_pure_v2()? { "v2" } else { "v1" },
            container: Container::new(cgroup).files(&daemon.mount_point()).shell()?,
        })
    }

    /// Each of `names`, at least `least`, has a row in the section of `path`.
    fn names(&self, path: &str, least: usize, names: &[String]) -> Result<()> {
        let rows = rows(self.document, path, self.layout)?;
        ensure!(names.len() >= least, "{path} has only {names:?}");
        for name in names {
            let row = rows.iter().find(|row| row.names.iter().any(|known| matches(known, name)));
            let row = row.with_context(|| format!("{path}: FILES.md has no row for `{name}`"))?;
            ensure!(!row.is_absent, "{path}: `{name}` is served, and absent in FILES.md: {row:?}");
        }
        Ok(())
    }

    /// What `script` prints, by line.
    fn lines(&mut self, script: &str) -> Result<Vec<String>> {
        Ok(self.container.say(script)?.lines().map(str::to_owned).collect())
    }

    /// The section of `path` has each of `fields`, and the file's first line as many words.
    fn fields(&mut self, path: &str, words: usize, fields: &[&str]) -> Result<()> {
        let line = self.container.say(&format!("head -n 1 {path}"))?;
        let parts = line.split(|c: char| c.is_whitespace() || c == '/');
        ensure!(parts.filter(|part| !part.is_empty()).count() == words, "{line}");
        let rows = rows(self.document, path, self.layout)?;
        for field in fields {
            let is_it = |row: &Row| row.names.join(", ").starts_with(field);
            ensure!(rows.iter().any(is_it), "{path}: FILES.md has no row `{field}`: {rows:#?}");
        }
        Ok(())
    }
}

#[test]
fn every_line_of_every_file_has_its_row() -> Result<()> {
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    let cgroup = Cgroup::new("documented")?;
    cgroup.limit_memory(64 << 20)?;
    let mut check = Check::new(&daemon, &cgroup)?;
    let keys = check.lines("cut -d: -f1 /proc/meminfo")?;
    check.names("/proc/meminfo", 30, &keys)?;
    let keys = check.lines("cut -d' ' -f1 /proc/vmstat")?;
    check.names("/proc/vmstat", 15, &keys)?;
    let keys = check.lines("cut -d' ' -f1 /proc/stat")?;
    let keys: Vec<_> = keys.iter().map(|key| without_numbers(key)).collect();
    check.names("/proc/stat", 8, &keys)?;
    // All that is not counted is the host's, in one row.
    let cpuinfo = rows(check.document, "/proc/cpuinfo", check.layout)?;
    for name in ["processor", "siblings", "cpu cores", "every other line"] {
        ensure!(cpuinfo.iter().any(|row| row.names.iter().any(|known| known == name)), "{name}");
    }
    check.fields("/proc/uptime", 2, &["first", "second"])?;
    check.fields("/proc/loadavg", 6, &["1, 5, 15 minutes", "running", "all", "last pid"])?;
    check.fields("/proc/swaps", 5, &["header", "one for each", "none, virtual, size, used, 0"])?;
    let columns = std::fs::read_to_string("/proc/diskstats")?;
    let columns = columns.lines().next().context("no device")?.split_whitespace().count();
    let of = ["device numbers and name", "reads, writes, discards completed", "sectors", "merged"];
    check.fields("/proc/diskstats", columns, &of)?;
    let header = rows(check.document, "/proc/slabinfo", check.layout)?;
    ensure!(header.iter().any(|row| row.names[0] == "version and column names"), "{header:?}");
    for resource in ["cpu", "io", "memory"] {
        rows(check.document, &format!("/proc/pressure/{resource}"), check.layout)?;
    }
    Ok(())
}

#[test]
fn every_file_of_the_trees_has_its_row() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("documented")?;
    cgroup.limit_memory(64 << 20)?;
    let mut check = Check::new(&daemon, &cgroup)?;
    for (tree, least) in [("cpu", 30), ("node", 10)] {
        let root = format!("/sys/devices/system/{tree}");
        let found = check.lines(&format!("cd {root} && find . ! -type d | cut -c3-"))?;
        let found: Vec<_> = found.iter().map(|path| without_numbers(path)).collect();
        check.names(&root, least, &found)?;
    }
    let keys =
        check.lines("sed 's/^Node [0-9]* //; s/:.*//' /sys/devices/system/node/node0/meminfo")?;
    check.names("/sys/devices/system/node/nodeN/meminfo", 4, &keys)
}
