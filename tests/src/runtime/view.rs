//! What programs in a container show, and what of it is wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{CPUS, MEMORY};

/// What is asked in the container, in this order, by name.
const QUESTIONS: [(&str, &str); 15] = [
    ("free", "free -k"),
    ("meminfo", "cat /proc/meminfo"),
    ("swaps", "cat /proc/swaps"),
    ("cpuinfo", "cat /proc/cpuinfo"),
    ("up", "cat /proc/uptime"),
    ("stat", "cat /proc/stat"),
    ("uptime", "uptime -p"),
    ("nproc", "nproc"),
    ("online", "cat /sys/devices/system/cpu/online"),
    ("getconf", "getconf _NPROCESSORS_ONLN"),
    ("lscpu", "lscpu"),
    ("loadavg", "cat /proc/loadavg"),
    // The container's times before and after, a busy loop's in between.
    (
        "busy",
        "(while :; do :; done) &\ncat /proc/stat /proc/$!/stat; sleep 2; cat /proc/$!/stat /proc/stat",
    ),
    ("top", "top -b -n 1; kill $!"),
    // Made last, so no pid in the container is greater.
    ("newest", "sh -c 'echo $$'"),
];

/// More processes than the questions make.
const PROCESSES: u64 = 8;

/// Hundredths of a second, or ticks, by which two clocks may differ that are not read at once.
const SLACK: u64 = 20;

/// The script that asks all of it.
#[must_use]
pub fn script() -> String {
    let asked = QUESTIONS.map(|(name, command)| format!("echo '== {name}'\n{command}\n"));
    asked.concat() + "echo '== end'\n"
}

/// What each question was answered.
type Answers<'a> = BTreeMap<&'a str, &'a str>;

/// An assertion: what is right, and how to find out. `elapsed` is the time since before the container was made.
type Assertion = (&'static str, fn(&Answers<'_>, Duration) -> Result<bool>);

const ASSERTIONS: [Assertion; 14] = [
    ("free shows the limit", |answers, _| {
        let memory = row(answers["free"], "Mem:")?;
        Ok(memory[1] == limit_kib() && [2, 3, 6].iter().all(|at| number(memory[*at]) <= kib()))
    }),
    ("MemTotal is the limit", |answers, _| {
        Ok(row(answers["meminfo"], "MemTotal:")?[1] == limit_kib())
    }),
    ("swaps has the swap of meminfo", |answers, _| {
        let total = row(answers["meminfo"], "SwapTotal:")?[1];
        let swaps: Vec<_> = answers["swaps"].lines().skip(1).collect();
        Ok(match swaps.as_slice() {
            [] => total == "0" && answers["swaps"].starts_with("Filename"),
            [one] => one.split_whitespace().nth(2) == Some(total),
            _ => false,
        })
    }),
    ("cpuinfo has the one CPU", |answers, _| {
        let lines = answers["cpuinfo"].lines().filter(|line| line.starts_with("processor"));
        Ok(lines.map(|line| line.split_whitespace().last()).eq([Some(CPUS)]))
    }),
    ("uptime is the container's", |answers, elapsed| Ok(up(answers["up"])? <= hundredths(elapsed))),
    ("uptime(1) says so", |answers, elapsed| {
        let words: Vec<_> = answers["uptime"].split_whitespace().collect();
        let ["up", minutes, unit] = words.as_slice() else { return Ok(false) };
        Ok(unit.starts_with("minute") && number(minutes) <= elapsed.as_secs() / 60)
    }),
    ("stat has the one CPU, and the time since the start", |answers, elapsed| {
        let rows: Vec<_> = answers["stat"].lines().filter(|line| line.starts_with("cpu")).collect();
        let names = rows.iter().filter_map(|row| row.split_whitespace().next());
        let one = names.eq(["cpu", &format!("cpu{CPUS}")]);
        let since = up(answers["up"])?..=hundredths(elapsed) + SLACK;
        Ok(one && rows.iter().all(|row| since.contains(&(ticks(row) + SLACK))))
    }),
    ("nproc is 1", |answers, _| Ok(answers["nproc"] == "1")),
    ("the CPU online is that of the cpuset", |answers, _| Ok(answers["online"] == CPUS)),
    ("getconf counts it", |answers, _| Ok(answers["getconf"] == "1")),
    ("lscpu lists it", |answers, _| {
        Ok(row(answers["lscpu"], "On-line CPU(s) list:")?.last() == Some(&CPUS))
    }),
    ("loadavg counts and numbers the container's processes", |answers, _| {
        let words: Vec<_> = answers["loadavg"].split_whitespace().collect();
        let (running, all) = words[3].split_once('/').context("no slash")?;
        let counted = number(running) >= 1 && (1..=PROCESSES).contains(&number(all));
        Ok(counted && (1..=number(answers["newest"])).contains(&number(words[4])))
    }),
    ("stat has the time of a busy loop", |answers, _| {
        let lines = || answers["busy"].lines();
        let all: Vec<_> = lines().filter(|line| line.starts_with("cpu ")).map(used).collect();
        let own: Vec<_> = lines()
            .filter_map(|line| line.split_once("(sh) "))
            .map(|(_, rest)| own(rest))
            .collect();
        ensure!(all.len() == 2 && own.len() == 2, "{}", answers["busy"]);
        Ok(own[1] > own[0] && all[1] + SLACK >= all[0] + own[1] - own[0])
    }),
    ("top shows the limit and the container's processes", |answers, _| {
        let page = answers["top"];
        let tasks = number(row(page, "Tasks:")?[1]);
        Ok(row(page, "MiB Mem")?[3] == "256.0" && (3..=PROCESSES).contains(&tasks))
    }),
];

/// What is wrong in the answers a script printed, a line each.
#[must_use]
pub fn wrong(text: &str, elapsed: Duration) -> Vec<String> {
    let answers = match answers(text) {
        Ok(answers) => answers,
        Err(error) => return vec![format!("{error:#}")],
    };
    let failed =
        ASSERTIONS.iter().filter_map(|(what, is_right)| match is_right(&answers, elapsed) {
            Ok(true) => None,
            Ok(false) => Some((*what).to_owned()),
            Err(error) => Some(format!("{what}: {error:#}")),
        });
    failed.collect()
}

fn answers(text: &str) -> Result<Answers<'_>> {
    let parts = text.split("== ").filter_map(|part| part.split_once('\n'));
    let answers: Answers<'_> = parts.map(|(name, answer)| (name.trim(), answer.trim())).collect();
    for name in QUESTIONS.iter().map(|(name, _)| *name).chain(["end"]) {
        ensure!(answers.contains_key(name), "{name} was not answered: {text}");
    }
    Ok(answers)
}

/// The words of the first line that begins with `name`.
fn row<'a>(text: &'a str, name: &str) -> Result<Vec<&'a str>> {
    let line = text.lines().find(|line| line.trim_start().starts_with(name));
    Ok(line.with_context(|| format!("no line `{name}`"))?.split_whitespace().collect())
}

/// A number, or one that is in no range of ours.
fn number(word: &str) -> u64 {
    word.parse().unwrap_or(u64::MAX)
}

const fn kib() -> u64 {
    MEMORY >> 10
}

fn limit_kib() -> String {
    kib().to_string()
}

/// `12.34 56.78` is up for 1234 hundredths.
fn up(uptime: &str) -> Result<u64> {
    let first = uptime.split(' ').next().context("empty")?;
    Ok(first.replace('.', "").parse()?)
}

fn hundredths(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_millis() / 10).unwrap_or(u64::MAX)
}

/// All the time of a row of stat; guests' time is in user's too.
fn ticks(row: &str) -> u64 {
    row.split_whitespace().skip(1).take(8).map(number).sum()
}

/// The busy time of a row of stat: all but the fourth and fifth column, idle and waiting.
fn used(row: &str) -> u64 {
    let times: Vec<_> = row.split_whitespace().skip(1).take(8).map(number).collect();
    times.iter().sum::<u64>() - times.iter().skip(3).take(2).sum::<u64>()
}

/// A process's own time: what follows its name in its `stat` has user and system twelfth and thirteenth.
fn own(stat: &str) -> u64 {
    stat.split_whitespace().skip(11).take(2).map(number).sum()
}
