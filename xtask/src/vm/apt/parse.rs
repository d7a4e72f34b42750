//! What apt prints and what its files say; nothing here touches the disk.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// A package file the archive offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deb {
    /// As apt names it on disk: `name_1%3a2.0_amd64.deb`.
    pub(crate) file: String,
    pub(crate) size_bytes: u64,
    pub(crate) sha256: String,
}

impl Deb {
    /// `name=version`, which makes `apt-get download` take exactly this one.
    pub(crate) fn specification(&self) -> String {
        let mut parts = self.file.split('_');
        let name = parts.next().unwrap_or_default();
        let version = parts.next().unwrap_or_default();
        format!("{name}={}", version.replace("%3a", ":").replace("%7e", "~"))
    }
}

/// The lines of `--print-uris`: `'URI' FILE SIZE SHA256:SUM`.
pub(crate) fn debs(printed: &str) -> Result<Vec<Deb>> {
    let lines = printed.lines().filter(|line| line.starts_with('\''));
    let debs = lines.map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, file, size, sum] = words[..] else {
            anyhow::bail!("apt printed {line:?}, not URI, file, size, sum");
        };
        let sha256 = sum.strip_prefix("SHA256:").with_context(|| format!("{line:?}: no SHA256"))?;
        let size_bytes = size.parse().with_context(|| format!("{line:?}: size"))?;
        Ok(Deb { file: file.to_owned(), size_bytes, sha256: sha256.to_owned() })
    });
    let debs: Vec<Deb> = debs.collect::<Result<_>>()?;
    ensure!(!debs.is_empty(), "apt named no package file");
    Ok(debs)
}

/// The names in the output of `apt-cache search`: `NAME - DESCRIPTION`.
pub(crate) fn names(found: &str) -> Vec<String> {
    found.lines().filter_map(|line| Some(line.split_once(" - ")?.0.to_owned())).collect()
}

/// The release name in `/etc/os-release`.
pub(crate) fn codename(os_release: &str) -> Option<String> {
    let line = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(line.trim_matches('"').to_owned())
}

/// Our configuration: what the machine's says of fetching (proxies, date checks), and every
/// folder under `dir`.
pub(crate) fn configuration(dump: &str, dir: &Path) -> String {
    let dir = dir.display();
    let fetching = dump.lines().filter(|line| {
        line.starts_with("Acquire::")
            && !line.starts_with("Acquire::IndexTargets")
            && !line.starts_with("Acquire::Languages")
    });
    let mut text: String = fetching.flat_map(|line| [line, "\n"]).collect();
    for nothing in ["main", "parts", "sourcelist", "preferences", "preferencesparts"] {
        text += &format!("Dir::Etc::{nothing} \"/dev/null\";\n");
    }
    text += &format!(
        "Dir::Etc::sourceparts \"{dir}/sources\";\n\
         Dir::State \"{dir}/state\";\n\
         Dir::State::lists \"{dir}/lists\";\n\
         Dir::State::status \"{dir}/status\";\n\
         Dir::Cache \"{dir}/cache\";\n\
         Dir::Cache::pkgcache \"\";\n\
         Dir::Cache::srcpkgcache \"\";\n\
         Acquire::GzipIndexes \"true\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::ForceHash \"SHA256\";\n\
         Acquire::Retries \"2\";\n\
         Debug::NoLocking \"true\";\n"
    );
    text
}

/// Source files for `suites`, made from the machine's file that names its own release: the mirror,
/// the keys and the options stay, the suite is replaced.
pub(crate) fn sources(
    machine: &[(String, String)],
    codename: &str,
    suites: &[&str],
) -> Option<Vec<(String, String)>> {
    machine.iter().find_map(|(name, text)| {
        if name.ends_with(".sources") {
            let stanza = text.split("\n\n").find(|stanza| is_release(stanza, codename))?;
            let text = with_suites(stanza, &suites.join(" "));
            return Some(vec![("debian.sources".to_owned(), text)]);
        }
        let line = text.lines().find(|line| is_release_line(line, codename))?;
        let lines = suites
            .iter()
            .map(|suite| line.replacen(&format!(" {codename} "), &format!(" {suite} "), 1) + "\n");
        Some(vec![("debian.list".to_owned(), lines.collect())])
    })
}

/// Whether a deb822 stanza is the main archive of the release `codename`.
fn is_release(stanza: &str, codename: &str) -> bool {
    let has = |field: &str, word: &str| {
        let lines = stanza.lines().filter(|line| !line.starts_with('#'));
        let mut values = lines.filter_map(|line| line.split_once(':'));
        values.any(|(name, value)| {
            name.eq_ignore_ascii_case(field) && value.split_whitespace().any(|found| found == word)
        })
    };
    has("Types", "deb")
        && has("Suites", codename)
        && has("Components", "main")
        && !has("Enabled", "no")
}

/// The stanza for other suites, binary packages of component main only.
fn with_suites(stanza: &str, suites: &str) -> String {
    let replaced = stanza.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (field, _) = line.split_once(':').unwrap_or((line, ""));
        match field.to_ascii_lowercase().as_str() {
            "types" => "Types: deb\n".to_owned(),
            "suites" => format!("Suites: {suites}\n"),
            "components" => "Components: main\n".to_owned(),
            _ => format!("{line}\n"),
        }
    });
    replaced.collect()
}

/// Whether a one-line source is the main archive of the release `codename`.
fn is_release_line(line: &str, codename: &str) -> bool {
    let Some(rest) = line.trim().strip_prefix("deb ") else {
        return false;
    };
    // Options, if any, stand in brackets before the address.
    let rest = rest.trim_start();
    let rest =
        if rest.starts_with('[') { rest.split_once(']').map_or("", |it| it.1) } else { rest };
    let words: Vec<&str> = rest.split_whitespace().collect();
    words.get(1) == Some(&codename) && words[2..].contains(&"main")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_give_file_size_and_sum() {
        let printed = "'http://m/q_1.deb' qemu_1%3a10.0%7e1+b2_amd64.deb 1234 SHA256:abcd\n";
        let found = debs(printed).unwrap();
        let expected = Deb {
            file: "qemu_1%3a10.0%7e1+b2_amd64.deb".to_owned(),
            size_bytes: 1234,
            sha256: "abcd".to_owned(),
        };
        assert_eq!(found, [expected]);
        assert_eq!(found[0].specification(), "qemu=1:10.0~1+b2");
    }

    #[test]
    fn a_weaker_sum_or_no_package_is_an_error() {
        assert!(debs("'http://m/q.deb' q_1_all.deb 12 MD5Sum:abcd").is_err());
        assert!(debs("'http://m/q.deb' q_1_all.deb").is_err());
        assert!(debs("").is_err());
    }

    #[test]
    fn search_lines_give_names() {
        assert_eq!(names("linux-a - Linux - x\nlinux-b - y\n"), ["linux-a", "linux-b"]);
    }

    #[test]
    fn the_codename_is_unquoted() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n").unwrap(), "bookworm");
        assert_eq!(codename("VERSION_CODENAME=\"trixie\"\n").unwrap(), "trixie");
        assert_eq!(codename("ID=arch\n"), None);
    }

    #[test]
    fn the_main_stanza_is_taken_and_its_suites_replaced() {
        let text = "Types: deb deb-src\n# a comment\nURIs: http://m/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By: /k\n\n\
                    Types: deb\nURIs: http://m/sec\nSuites: bookworm-security\nComponents: main\n";
        let machine = [("/etc/debian.sources".to_owned(), text.to_owned())];
        let ours = sources(&machine, "bookworm", &["trixie", "trixie-backports"]).unwrap();
        let expected = "Types: deb\nURIs: http://m/debian\nSuites: trixie trixie-backports\n\
                        Components: main\nSigned-By: /k\n";
        assert_eq!(ours, [("debian.sources".to_owned(), expected.to_owned())]);
    }

    #[test]
    fn a_disabled_or_foreign_stanza_is_not_taken() {
        let off = "Types: deb\nURIs: u\nSuites: bookworm\nComponents: main\nEnabled: no\n";
        let machine = [("a.sources".to_owned(), off.to_owned())];
        assert_eq!(sources(&machine, "bookworm", &["trixie"]), None);
        let foreign = "deb [arch=amd64] https://other nodistro main\n";
        let machine = [("b.list".to_owned(), foreign.to_owned())];
        assert_eq!(sources(&machine, "bookworm", &["trixie"]), None);
    }

    #[test]
    fn one_line_sources_keep_their_options() {
        let text = "# deb http://old bookworm main\ndeb [signed-by=/k] http://m/d bookworm main\n";
        let machine = [("sources.list".to_owned(), text.to_owned())];
        let ours = sources(&machine, "bookworm", &["bookworm", "trixie"]).unwrap();
        let expected = "deb [signed-by=/k] http://m/d bookworm main\ndeb [signed-by=/k] http://m/d trixie main\n";
        assert_eq!(ours, [("debian.list".to_owned(), expected.to_owned())]);
    }

    #[test]
    fn the_configuration_keeps_proxies_and_drops_hooks() {
        let dump = "APT::Update::Post-Invoke:: \"rm\";\nAcquire::http::Proxy \"http://p\";\n\
                    Acquire::IndexTargets::deb::DEP-11::MetaKey \"x\";\n";
        let text = configuration(dump, Path::new("/t"));
        assert!(text.contains("Acquire::http::Proxy \"http://p\";\n"));
        assert!(text.contains("Dir::State::status \"/t/status\";\n"));
        assert!(!text.contains("Post-Invoke") && !text.contains("DEP-11"), "{text}");
    }
}
