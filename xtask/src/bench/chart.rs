//! The chart of a run: how long each file takes, for everybody, on a scale where equal factors are equally far.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::report;
use super::results::Results;
use super::subjects::{DEBIAN, FLOOR, KERNEL, OURS};

const SIZE: (u32, u32) = (900, 460);

/// Draws `results` to `path`, as SVG.
pub(super) fn draw(results: &Results, path: &Path) -> Result<()> {
    draw_with(results, path).map_err(|error| anyhow!("draw {}: {error}", path.display()))
}

fn draw_with(results: &Results, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<_> = results.cycle.iter().collect();
    let names = report::names(results);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let caption = format!(
        "open, read, close: median us on one CPU ({}, Linux {})",
        results.machine.processor, results.machine.kernel
    );
    let mut chart = ChartBuilder::on(&root)
        .caption(caption, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(70)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..files.len() as f64, (1.0..1_000.0).log_scale())?;
    let label = |x: &f64| {
        let file = files.get(*x as usize).map_or("", |(file, _)| file.as_str());
        file.trim_start_matches("proc/").trim_start_matches("sys/devices/system/").to_owned()
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(files.len() + 1)
        .x_label_formatter(&label)
        .x_label_style(("sans-serif", 12).into_font().transform(FontTransform::Rotate90))
        .y_label_formatter(&|us| format!("{us:.0}"))
        .y_desc("us")
        .draw()?;
    // A bar for each name, side by side, with a fifth of the room left free.
    let width = 0.8 / names.len() as f64;
    for (nth, name) in names.iter().enumerate() {
        let colour = colour(name);
        let bars = files.iter().enumerate().filter_map(|(at, (_, timings))| {
            let us = timings.get(name)?.p50_ns as f64 / 1_000.0;
            let left = at as f64 + 0.1 + nth as f64 * width;
            Some(Rectangle::new([(left, 1.0), (left + width, us)], colour.filled()))
        });
        chart
            .draw_series(bars)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}

fn colour(name: &str) -> RGBColor {
    match name {
        FLOOR => RGBColor(150, 150, 150),
        OURS => RGBColor(30, 110, 190),
        DEBIAN => RGBColor(215, 90, 30),
        KERNEL => RGBColor(205, 205, 205),
        _ => RGBColor(240, 170, 60),
    }
}
