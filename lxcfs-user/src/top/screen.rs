//! The live table in a terminal.

use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Row, Table, TableState};

use super::rates::Rates;
use super::table::{self, Order};
use crate::error::{Error, Result};
use crate::survey::Survey;

const KEYS: &str =
    "q quit   c CPU   m memory   l load   n name   up/down, PgUp/PgDn, Home/End scroll";

/// What is on the screen.
struct Screen {
    rates: Rates,
    order: Order,
    state: TableState,
}

/// What a key asks for.
enum Wish {
    Nothing,
    Redraw,
    Quit,
}

/// Shows the table, with a new survey in every `interval`, until the user quits.
pub(super) fn run(
    first: Survey,
    interval: Duration,
    order: Order,
    survey: impl Fn() -> Result<Survey>,
) -> Result<()> {
    let mut terminal = used(ratatui::try_init())?;
    let shown = show(&mut terminal, first, interval, order, survey);
    ratatui::restore();
    shown
}

/// What using the terminal gave: the error says so, whether it was drawing, keys or the switch to the other screen.
fn used<T>(result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| Error::std("use", "the terminal", &error))
}

fn show(
    terminal: &mut DefaultTerminal,
    first: Survey,
    interval: Duration,
    order: Order,
    survey: impl Fn() -> Result<Survey>,
) -> Result<()> {
    let rates = Rates::between(&first, &first);
    let mut screen = Screen { rates, order, state: TableState::new().with_selected(0) };
    let (mut before, mut due) = (first, Instant::now() + interval);
    used(terminal.draw(|frame| screen.draw(frame)))?;
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if used(event::poll(left))? {
            match screen.handle(&used(event::read())?) {
                Wish::Quit => return Ok(()),
                Wish::Nothing => continue,
                Wish::Redraw => {}
            }
        } else {
            let after = survey()?;
            screen.rates = Rates::between(&before, &after);
            (before, due) = (after, Instant::now() + interval);
        }
        used(terminal.draw(|frame| screen.draw(frame)))?;
    }
}

impl Screen {
    fn handle(&mut self, event: &Event) -> Wish {
        let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else {
            // A terminal of another size, most likely.
            return Wish::Redraw;
        };
        match code {
            KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return Wish::Quit,
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
            KeyCode::Char('c') => self.order = Order::Cpu,
            KeyCode::Char('m') => self.order = Order::Memory,
            KeyCode::Char('l') => self.order = Order::Load,
            KeyCode::Char('n') => self.order = Order::Name,
            KeyCode::Down | KeyCode::Char('j') => self.state.select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.state.select_previous(),
            KeyCode::PageDown => self.state.scroll_down_by(20),
            KeyCode::PageUp => self.state.scroll_up_by(20),
            KeyCode::Home => self.state.select_first(),
            KeyCode::End => self.state.select_last(),
            _ => return Wish::Nothing,
        }
        Wish::Redraw
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let parts =
            Layout::vertical([Constraint::Length(2), Constraint::Fill(1), Constraint::Length(1)]);
        let [above, middle, below] = parts.areas(frame.area());
        frame.render_widget(Text::from(table::summary(&self.rates)), above);
        frame.render_widget(Line::from(KEYS).style(Modifier::DIM), below);

        let fixed: u16 = table::WIDTHS.iter().map(|width| width + 1).sum();
        let left = usize::from(middle.width.saturating_sub(fixed));
        let rows = table::rows(&self.rates, self.order).into_iter().map(|row| {
            let cells = row.cells.iter().take(table::WIDTHS.len());
            let numbers = cells.map(|cell| Cell::from(Text::from(cell.clone()).right_aligned()));
            let name = Cell::from(table::end_of(&row.cells[table::WIDTHS.len()], left));
            Row::new(numbers.chain([name]))
        });
        let headings = table::HEADINGS.into_iter().enumerate().map(|(column, heading)| {
            let text = Text::from(heading);
            if column < table::WIDTHS.len() { text.right_aligned() } else { text }
        });
        let widths = table::WIDTHS.map(Constraint::Length).into_iter().chain([Constraint::Fill(1)]);
        let table = Table::new(rows, widths)
            .header(Row::new(headings).style(Style::new().add_modifier(Modifier::REVERSED)))
            .row_highlight_style(Modifier::BOLD);
        frame.render_stateful_widget(table, middle, &mut self.state);
    }
}
