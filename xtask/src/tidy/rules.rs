//! The rules. Each returns a line for every breach: `path:line: what, and which invariant`.

use super::{File, Tree};

/// The longest file and function.
const LONGEST_FILE: usize = 500;
const LONGEST_FUNCTION: usize = 60;
const LONGEST_ARCHITECTURE: usize = 150;

/// Files that may hold `unsafe`, because each needs a system call nobody wraps.
const UNSAFE_FILES: [&str; 11] = [
    "lxcfs-user/src/bpf/mapping.rs",
    "lxcfs-user/src/bpf/sys.rs",
    "lxcfs-user/src/caller/pidns.rs",
    "lxcfs-user/src/daemon/leaving.rs",
    "lxcfs-user/src/keep/descriptors.rs",
    "lxcfs-user/src/source/handle.rs",
    "tests/examples/cost.rs",
    "tests/src/bin/burden.rs",
    "tests/src/bin/contain.rs",
    "tests/src/bin/crowd.rs",
    "tests/src/counting.rs",
];

/// What does I/O or knows the time: names that a pure room may not use.
const OUTSIDE: [&str; 10] = [
    "std::fs",
    "rustix",
    "libc::",
    "nix::",
    "fuser",
    "aya",
    "tokio",
    "std::env",
    "SystemTime",
    "Instant",
];

/// Rooms, and what a file in them may not name.
const ABSENCES: [(&str, &[&str], &str); 11] = [
    ("lxcfs-user/src/files", &OUTSIDE, "pages are made from traits: no I/O, no clock"),
    ("lxcfs-user/src/model", &OUTSIDE, "the model is arithmetic: no I/O, no clock"),
    ("lxcfs-user/src/model", &["crate::"], "the model knows no other room"),
    (
        "lxcfs-user/src/source",
        &["crate::files", "crate::caller", "crate::road", "crate::fs", "crate::daemon", "fuser"],
        "a source knows nothing above it",
    ),
    (
        "lxcfs-user/src/caller",
        &["crate::files", "crate::road", "crate::fs", "crate::daemon", "fuser"],
        "who asks does not depend on what is asked",
    ),
    (
        "lxcfs-user/src/files",
        &[
            "crate::caller",
            "crate::road",
            "crate::fs",
            "crate::daemon",
            "source::cgroup",
            "source::host",
        ],
        "pages see sources only through their traits",
    ),
    ("lxcfs-user/src/road", &["crate::fs", "crate::daemon", "fuser"], "the road knows no FUSE"),
    (
        "lxcfs-user/src/fs",
        &["crate::daemon", "crate::source::cgroup"],
        "the filesystem knows no numbers",
    ),
    (
        "lxcfs-user/src",
        &["uname", "osrelease", "proc/version", "kernel_version"],
        "capabilities are probed, versions are not compared",
    ),
    (
        "lxcfs-user/src/caller",
        &["SystemTime"],
        "a clock that is set must not change what is known of a container",
    ),
    (
        "lxcfs-user/src/source",
        &["SystemTime"],
        "a clock that is set must not change what is known of a container",
    ),
];

/// What no file may hold.
const NOWHERE: [(&str, &str); 6] = [
    ("todo!(", "unfinished code"),
    ("unimplemented!(", "unfinished code"),
    ("dbg!(", "left-over debugging"),
    ("#[ignore", "a test that is not run is no test"),
    ("\t", "a tab"),
    (" \n", "a space at the end of a line"),
];

/// All breaches in `tree`.
pub(super) fn breaches(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in tree.rust().filter(|file| !file.path.starts_with("xtask/src/tidy")) {
        absences(file, &mut found);
        form(file, &mut found);
        functions(file, &mut found);
    }
    served_files(tree, &mut found);
    documents(tree, &mut found);
    found
}

/// The part of a file before its tests: a test may use what it tests with.
fn code(file: &File) -> impl Iterator<Item = (usize, &str)> {
    let lines = file.text.lines().enumerate().map(|(index, line)| (index + 1, line));
    lines.take_while(|(_, line)| *line != "#[cfg(test)]")
}

fn absences(file: &File, found: &mut Vec<String>) {
    for (room, names, why) in ABSENCES {
        let in_room = file.path.strip_prefix(room).is_some_and(|rest| rest.starts_with(['/', '.']));
        // `fake.rs` and `testing.rs` stand in for the outside in tests.
        if !in_room || file.path.ends_with("/testing.rs") {
            continue;
        }
        for (number, line) in code(file).filter(|(_, line)| !is_comment(line)) {
            let own = room == "lxcfs-user/src/model" && line.contains("crate::model");
            for name in names.iter().filter(|name| !own && line.contains(*name)) {
                found.push(format!("{}:{number}: names {name}: {why}", file.path));
            }
        }
    }
    let fuser_rooms = ["lxcfs-user/src/fs", "lxcfs-user/src/daemon"];
    if file.path.starts_with("lxcfs-user/src")
        && !fuser_rooms.iter().any(|r| file.path.starts_with(r))
    {
        for (number, _) in code(file).filter(|(_, line)| line.contains("fuser::")) {
            found.push(format!("{}:{number}: names fuser: only fs and daemon may", file.path));
        }
    }
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn form(file: &File, found: &mut Vec<String>) {
    let path = &file.path;
    if !file.text.starts_with("//!") {
        found.push(format!("{path}:1: does not open with `//!`: every module says what it is"));
    }
    let length = file.text.lines().count();
    if length > LONGEST_FILE {
        found.push(format!("{path}:{length}: longer than {LONGEST_FILE} lines: a crowded room"));
    }
    if path.ends_with("/mod.rs") {
        found.push(format!("{path}:1: mod.rs: the file beside the room has its name"));
    }
    if let Some(odd) = file.text.chars().find(|c| !c.is_ascii()) {
        found.push(format!("{path}: `{odd}` is not ASCII"));
    }
    for (text, why) in NOWHERE {
        if let Some(at) = file.text.find(text) {
            let line = file.text[..at].lines().count();
            found.push(format!("{path}:{line}: {why}"));
        }
    }
    let allowed = UNSAFE_FILES.contains(&path.as_str()) || path.starts_with("lxcfs-ebpf/src/");
    for (number, line) in file.text.lines().enumerate().filter(|(_, line)| !is_comment(line)) {
        if line.contains("unsafe ") && !allowed {
            found.push(format!("{path}:{}: unsafe outside the files named for it", number + 1));
        }
    }
}

/// A formatted function begins with `fn` on a line and ends with a brace at the same indent.
fn functions(file: &File, found: &mut Vec<String>) {
    let lines: Vec<_> = file.text.lines().collect();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        let is_function = trimmed.split(' ').take(5).any(|word| word == "fn") && !is_comment(line);
        if !is_function || trimmed.ends_with([';', '}']) {
            continue;
        }
        let end = lines[start..].iter().position(|line| {
            line.len() == indent + 1 && line.ends_with('}') && line[..indent].trim().is_empty()
        });
        let length = end.map_or(0, |end| end + 1);
        if length > LONGEST_FUNCTION {
            found.push(format!(
                "{}:{}: a function of {length} lines, more than {LONGEST_FUNCTION}",
                file.path,
                start + 1
            ));
        }
    }
}

/// Every file we make has a module with its name, a golden page or a test of its text, and a section in FILES.md.
fn served_files(tree: &Tree, found: &mut Vec<String>) {
    let Some(list) = tree.get("lxcfs-user/src/model/file.rs") else {
        found.push("lxcfs-user/src/model/file.rs: the list of files is gone".to_owned());
        return;
    };
    let documented = tree.get("FILES.md").map_or("", |file| file.text.as_str());
    let names =
        list.text.lines().filter_map(|line| line.split_once("=> \"")?.1.strip_suffix("\","));
    let paths = names.filter(|name| name.starts_with("proc/") || name.starts_with("sys/"));
    for path in paths {
        if !documented.contains(&format!("## /{path}")) {
            found.push(format!("FILES.md: no section `## /{path}`"));
        }
        let module = match path.strip_prefix("proc/") {
            Some(pressure) if pressure.starts_with("pressure/") => "pressure".to_owned(),
            Some(name) => name.to_owned(),
            None => path.trim_start_matches("sys/devices/system/").replace('/', "_"),
        };
        let module = format!("lxcfs-user/src/files/{module}.rs");
        match tree.get(&module) {
            None => found.push(format!("{module}: /{path} has no module of its name")),
            Some(file) if !file.text.contains("#[test]") => {
                found.push(format!("{module}: /{path} has no test of its page"));
            }
            Some(_) => {}
        }
    }
}

fn documents(tree: &Tree, found: &mut Vec<String>) {
    match tree.get("ARCHITECTURE.md") {
        None => found.push("ARCHITECTURE.md: missing".to_owned()),
        Some(file) if file.text.lines().count() > LONGEST_ARCHITECTURE => {
            found.push(format!("ARCHITECTURE.md: more than {LONGEST_ARCHITECTURE} lines"));
        }
        Some(_) => {}
    }
    for document in ["README.md", "FILES.md", "CHANGELOG.md"] {
        if tree.get(document).is_none() {
            found.push(format!("{document}: missing"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, text: &str) -> Vec<String> {
        let file = File { path: path.to_owned(), text: text.to_owned() };
        let mut found = Vec::new();
        absences(&file, &mut found);
        form(&file, &mut found);
        functions(&file, &mut found);
        found
    }

    #[test]
    fn a_page_that_reads_a_file_is_found() {
        let found = of("lxcfs-user/src/files/stat.rs", "//! x\nuse std::fs;\n");
        assert_eq!(
            found,
            [
                "lxcfs-user/src/files/stat.rs:2: names std::fs: pages are made from traits: no I/O, no clock"
            ]
        );
        assert!(
            of("lxcfs-user/src/files/stat.rs", "//! x\n#[cfg(test)]\nuse std::fs;\n").is_empty()
        );
    }

    #[test]
    fn a_source_that_looks_up_is_found() {
        assert_eq!(
            of("lxcfs-user/src/source/host.rs", "//! x\nuse crate::caller::Caller;\n").len(),
            1
        );
        assert!(
            of("lxcfs-user/src/source/host.rs", "//! x\nuse crate::model::file::File;\n")
                .is_empty()
        );
        assert_eq!(
            of("lxcfs-user/src/model/load.rs", "//! x\nuse crate::source::Load;\n").len(),
            1
        );
    }

    /// A clock that is set back would have LXCFS keep containers that have ended, or forget those that live.
    #[test]
    fn b04_no_lookup_depends_on_the_wall_clock() {
        let text = "//! x\nuse std::time::SystemTime;\n";
        for path in ["lxcfs-user/src/caller/cache.rs", "lxcfs-user/src/source/tasks.rs"] {
            assert_eq!(of(path, text).len(), 1, "{path}");
        }
    }

    #[test]
    fn unsafe_is_only_where_it_is_named() {
        let text = "//! x\n// unsafe in a comment\nunsafe { call() }\n";
        assert_eq!(of("lxcfs-user/src/road.rs", text).len(), 1);
        assert!(of("lxcfs-user/src/caller/pidns.rs", text).is_empty());
    }

    #[test]
    fn length_form_and_left_overs_are_found() {
        let long = format!("//! x\nfn long() {{\n{}}}\n", "    call();\n".repeat(60));
        assert_eq!(of("xtask/src/run.rs", &long).len(), 1);
        assert_eq!(of("xtask/src/run.rs", &format!("//! x\n{}", "//\n".repeat(500))).len(), 1);
        assert_eq!(of("xtask/src/run.rs", "fn f() {}\n").len(), 1);
        assert_eq!(of("xtask/src/run.rs", "//! \u{fc}\n").len(), 1);
        assert_eq!(of("xtask/src/vm/mod.rs", "//! x\n").len(), 1);
        assert_eq!(of("tests/tests/fs.rs", "//! x\n#[ignore]\n").len(), 1);
    }

    #[test]
    fn a_file_without_a_section_or_module_is_found() {
        let list = "            Self::Vmstat => \"proc/vmstat\",\n";
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
        let mut tree = Tree { files: vec![file("lxcfs-user/src/model/file.rs", list)] };
        let mut found = Vec::new();
        served_files(&tree, &mut found);
        assert_eq!(found.len(), 2, "{found:?}");
        tree.files.push(file("FILES.md", "## /proc/vmstat\n"));
        tree.files.push(file("lxcfs-user/src/files/vmstat.rs", "//! x\n#[test]\n"));
        found.clear();
        served_files(&tree, &mut found);
        assert!(found.is_empty(), "{found:?}");
    }
}
