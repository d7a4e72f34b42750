//! The load averages against the kernel's recurrence, in closed form.

use std::fs;
use std::thread;
use std::time::Duration;

use lxcfs::bpf::LoadSample;
use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::{wait_for, wait_for_no_objection};

use super::{accounting, as_floats, at_tick, directory, id, kept, load, setting, turn};

/// Busy and uninterruptible tasks of a leaf one level deep, two levels deep, and so on.
const TASKS: [(u32, u32); 8] = [(1, 0), (0, 1), (2, 1), (1, 2), (3, 0), (0, 3), (1, 1), (2, 2)];

/// A leaf some levels deep, and what stands in it.
struct Deep {
    top: Cgroup,
    leaf: Option<Cgroup>,
    active: (u32, u32),
    burdens: Vec<Burden>,
}

impl Deep {
    fn new(depth: usize, (busy, blocked): (u32, u32)) -> Self {
        let top = Cgroup::new(&format!("deep{depth}")).expect("make a cgroup");
        let leaf = (1..depth).fold(None, |above: Option<Cgroup>, _| {
            Some(above.as_ref().unwrap_or(&top).leaf("below").expect("make a leaf"))
        });
        let home = leaf.as_ref().unwrap_or(&top);
        let start = |kind, number| (number > 0).then(|| Burden::start(kind, number, home));
        let burdens = [start("nice", busy), start("vfork", blocked)].into_iter().flatten();
        Self { burdens: burdens.collect(), top, leaf, active: (busy, blocked) }
    }

    fn stands(&self) -> bool {
        let load = load(&self.top);
        let (busy, blocked) = self.active;
        (load.nr_running, load.nr_uninterruptible) == (busy.into(), blocked.into())
    }

    /// What is counted here, if that is not what stands here.
    fn objection(&self) -> Option<String> {
        let counted = || {
            format!("{:?} are {:?}: {:?}", self.active, load(&self.top), accounting().counters())
        };
        (!self.stands()).then(counted)
    }

    /// The averages after `ticks` more samples of what stands here, from those of `base`.
    #[expect(clippy::float_arithmetic, reason = "the exact result to compare with")]
    fn expected(&self, base: &LoadSample, ticks: u64) -> [f64; 3] {
        let active = f64::from(self.active.0 + self.active.1);
        let kept = kept(ticks);
        std::array::from_fn(|nth| active + (as_floats(base)[nth] - active) * kept[nth])
    }
}

/// Waits for each of the next `ticks` samples, compares every leaf, and returns how many averages it compared.
#[expect(clippy::float_arithmetic, reason = "to compare with exact results")]
fn follow(deep: &[Deep], ticks: u64) -> usize {
    let look = || deep.iter().map(|deep| load(&deep.top)).collect::<Vec<_>>();
    let (start, first) = at_tick(look);
    let (mut seen, mut compared) = (0, 0);
    while seen < ticks {
        thread::sleep(Duration::from_millis(100));
        let (tick, now) = at_tick(look);
        if tick - start == seen {
            continue;
        }
        seen = tick - start;
        for ((deep, base), now) in deep.iter().zip(&first).zip(&now) {
            assert!(deep.stands(), "{:?}: {now:?}", deep.active);
            let exact = deep.expected(base, seen);
            for ((ours, exact), printed) in as_floats(now).into_iter().zip(exact).zip(now.avenrun())
            {
                let printed = printed as f64 / 2048.0;
                assert!((ours - exact).abs() < 1e-6, "{seen} ticks: {ours}, not {exact}");
                assert!((printed - exact).abs() < 0.001, "{seen} ticks: {printed}, not {exact}");
                compared += 1;
            }
        }
    }
    compared
}

/// Leaves one to eight levels deep, loaded, and then idle.
#[test]
fn averages_follow_the_closed_form_at_every_tick() {
    let ticks = setting("LXCFS_TEST_TICKS", 4);
    let _turn = turn();
    let mut deep: Vec<_> = (1..).zip(TASKS).map(|(depth, of)| Deep::new(depth, of)).collect();
    for burden in deep.iter_mut().flat_map(|deep| &mut deep.burdens) {
        burden.ready();
    }
    wait_for_no_objection("the burdens to stand", || deep.iter().find_map(Deep::objection));
    for deep in &deep {
        let [.., fifteen] = as_floats(&load(&deep.top));
        assert!(fifteen < 1.0, "it has just begun: {fifteen}");
    }
    let compared = follow(&deep, ticks);
    assert!(compared >= 8 * 3 && compared.is_multiple_of(24), "{compared}");
    for deep in deep.iter().filter(|deep| deep.leaf.is_some()) {
        let own = accounting().slot_of(id(&deep.top)).and_then(|slot| accounting().load_of(slot));
        assert!(own.is_none_or(|own| own.average == [0; 3]), "the load is the leaf's own");
    }
    for deep in &mut deep {
        deep.burdens.clear();
        deep.active = (0, 0);
    }
    wait_for("the leaves to be idle", || deep.iter().all(Deep::stands));
    let compared = follow(&deep, ticks.div_ceil(4));
    assert!(compared >= 8 * 3, "{compared}");
}

#[test]
fn a_removed_groups_load_decays_in_its_parent() {
    let _turn = turn();
    let accounting = accounting();
    let top = Cgroup::new("decay").expect("make a cgroup");
    let mut stays = Burden::start("sleep", 1, &top);
    stays.ready();
    let leaf = top.leaf("leaf").expect("make a leaf");
    let burden = Burden::start("spin", 2, &leaf);
    wait_for("a load", || load(&top).avenrun()[0] > 0);
    let leaf_id = id(&leaf);
    drop(burden);
    let path = directory(&leaf);
    wait_for("the leaf to be empty", || fs::remove_dir(&path).is_ok());
    let (start, before) = at_tick(|| load(&top));
    assert!(before.average[0] > 0);
    wait_for("the slot to come back", || {
        accounting.maintain().expect("maintain");
        accounting.slot_of(leaf_id).is_none()
    });
    let mut ticks = 0;
    while ticks == 0 {
        let (tick, after) = at_tick(|| load(&top));
        ticks = tick - start;
        let expected = as_floats(&before).into_iter().zip(kept(ticks));
        for (ours, (base, kept)) in as_floats(&after).into_iter().zip(expected) {
            assert!((ours - base * kept).abs() < 1e-6, "tick {ticks}: {ours} of {base}");
        }
        thread::sleep(Duration::from_millis(50));
    }
}
