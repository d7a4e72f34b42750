//! `lxcfs top`: all containers in a live table, or printed for people and programs.
//!
//! The daemon measures, this side subtracts: two surveys make the rates of the time between them.

mod rates;
mod screen;
mod table;

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use self::rates::Rates;
use self::table::{Order, Row};
use crate::cli::{Sorting, Top};
use crate::daemon::control;
use crate::error::{Error, Result};
use crate::output::print;
use crate::survey::Survey;

/// What every survey costs the daemon is bounded by how often one is asked for.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// The widest a table is made where nobody says how wide the terminal is.
const PRINTED_WIDTH: u16 = 160;

/// Shows the containers of the daemon behind `socket` until the user ends it, or once.
///
/// # Errors
/// No daemon answers, or the terminal cannot be used.
pub fn run(arguments: &Top, socket: &Path) -> Result<()> {
    let interval = Duration::from_secs_f64(arguments.interval).max(SHORTEST_INTERVAL);
    let order = Order::from(arguments.sort);
    let is_screen = !arguments.once && !arguments.json && std::io::stdout().is_terminal();
    let first = survey(socket)?;
    if is_screen {
        return screen::run(first, interval, order, || survey(socket));
    }
    let mut before = first;
    loop {
        std::thread::sleep(interval);
        let after = survey(socket)?;
        let rates = Rates::between(&before, &after);
        let text = if arguments.json { json(&rates)? } else { printed(&rates, order) };
        if !print(text.as_bytes())? || arguments.once {
            return Ok(());
        }
        before = after;
    }
}

fn survey(socket: &Path) -> Result<Survey> {
    let answer = control::ask_running(socket, "survey")?;
    serde_json::from_slice(&answer)
        .map_err(|error| Error::parse(socket, format!("the daemon's answer: {error}")))
}

/// One object on a line: a stream of them can be read as it comes.
fn json(rates: &Rates) -> Result<String> {
    let text = serde_json::to_string(rates);
    let text = text.map_err(|error| Error::parse("the measurements", error.to_string()))?;
    Ok(text + "\n")
}

fn printed(rates: &Rates, order: Order) -> String {
    let mut lines = vec![table::summary(rates), String::new()];
    lines.push(table::line(&table::HEADINGS.map(str::to_owned), PRINTED_WIDTH));
    let rows = table::rows(rates, order);
    lines.extend(rows.iter().map(|Row { cells }| table::line(cells, PRINTED_WIDTH)));
    lines.join("\n") + "\n"
}

impl From<Sorting> for Order {
    fn from(sorting: Sorting) -> Self {
        match sorting {
            Sorting::Cpu => Self::Cpu,
            Sorting::Memory => Self::Memory,
            Sorting::Load => Self::Load,
            Sorting::Name => Self::Name,
        }
    }
}
