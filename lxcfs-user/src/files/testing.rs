//! What the tests of every page share: one container on one machine, and golden pages.

use std::path::Path;
use std::sync::Arc;

use super::{Policy, Reader, View, page, sysfs};
use crate::error::Result;
use crate::model::container::{CgroupPaths, Container};
use crate::model::file::File;
use crate::model::topology::Place;
use crate::source::Text;
use crate::source::fake::{FakeMachine, FakeSource};

/// A container that has been up for 100 s on a machine that has been up for 1,000 s.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) source: FakeSource,
    pub(super) machine: FakeMachine,
    pub(super) policy: Policy,
    pub(super) container: Container,
    pub(super) reader: Reader,
}

impl Case {
    pub(super) fn new(source: FakeSource, files: &[(File, &str)]) -> Self {
        let files = files.iter().map(|&(file, text)| (file, Text::new(text.into()))).collect();
        Self {
            source,
            machine: FakeMachine {
                files,
                boottime_ns: 1_000_000_000_000,
                ..FakeMachine::default()
            },
            policy: Policy::default(),
            container: Container {
                init: 4711,
                started_ns: 900_000_000_000,
                pid_depth: 1,
                cgroups: CgroupPaths::default(),
                history: Arc::default(),
                at_hand: Arc::default(),
            },
            reader: Reader::default(),
        }
    }

    pub(super) fn page(&self, file: File) -> Result<String> {
        let mut text = Vec::new();
        page(file, &self.view(), &mut text)?;
        Ok(String::from_utf8(text).expect("pages of ASCII hosts are ASCII"))
    }

    /// The text of a file of `/sys`.
    pub(super) fn sysfs(&self, place: &Place) -> Result<String> {
        let mut text = Vec::new();
        assert!(sysfs(place, &self.view(), &mut text)?, "{place:?} is not there");
        Ok(String::from_utf8(text).expect("pages of ASCII hosts are ASCII"))
    }

    pub(super) const fn view(&self) -> View<'_> {
        View {
            container: &self.container,
            source: &self.source,
            machine: &self.machine,
            policy: &self.policy,
            reader: self.reader,
        }
    }

    /// The page must be `testdata/<name>.want`; `UPDATE_GOLDEN=1` writes it.
    pub(super) fn golden(&self, file: File, name: &str) {
        let page = self.page(file).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
        let path = path.with_extension("want");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &page).unwrap();
        }
        let want = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
        assert_eq!(
            page,
            want,
            "{} differs; if it should, run with UPDATE_GOLDEN=1",
            path.display()
        );
    }
}
