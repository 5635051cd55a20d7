//! Draws how cost grows with the size of the store: reads the lines that
//! `cargo bench --bench figures -- sessions size` prints, and writes an SVG.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml --bin plot -- OUT.svg < LINES`

use std::collections::BTreeMap;
use std::io::BufRead;

use plotters::prelude::*;
use serde_json::Value;

/// Points of a curve by the number of stored processes; several runs of one size are averaged by
/// their median.
type Curves = BTreeMap<String, BTreeMap<u64, Vec<f64>>>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = std::env::args()
        .nth(1)
        .ok_or("usage: plot OUT.svg < LINES")?;
    let (mut reads, mut writes) = (Curves::new(), Curves::new());
    for line in std::io::stdin().lock().lines() {
        let Ok(figure) = serde_json::from_str::<Value>(&line?) else {
            continue;
        };
        if figure["cache"] == "cold" {
            continue;
        }
        let (Some(call), Some(stored)) = (figure["call"].as_str(), figure["stored"].as_u64())
        else {
            continue;
        };
        let (curves, value) = match figure["figure"].as_str() {
            Some("sessions") => (&mut reads, figure["ms_median"].as_f64()),
            Some("size") => (
                &mut writes,
                figure["per_second"].as_f64().map(|rate| 1e6 / rate),
            ),
            _ => continue,
        };
        if let Some(value) = value {
            let curve = curves.entry(call.to_owned()).or_default();
            curve.entry(stored).or_default().push(value);
        }
    }
    let root = SVGBackend::new(&out, (960, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(480);
    draw(&left, "reads of a session of 50, warm", "ms, median", &reads)?;
    draw(&right, "writes, 64 callers", "µs per call (1/throughput)", &writes)?;
    root.present()?;
    Ok(())
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    unit: &str,
    curves: &Curves,
) -> Result<(), Box<dyn std::error::Error>> {
    let medians: Vec<(&String, Vec<(u64, f64)>)> = curves
        .iter()
        .map(|(name, points)| {
            let points = points.iter().map(|(at, values)| (*at, median(values)));
            (name, points.collect())
        })
        .collect();
    let highest = medians
        .iter()
        .flat_map(|(_, points)| points.iter().map(|(_, value)| *value))
        .fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(52)
        .build_cartesian_2d((1_000_u64..1_000_000_u64).log_scale(), 0.0..highest * 1.25)?;
    chart
        .configure_mesh()
        .x_desc("stored processes")
        .y_desc(unit)
        .x_labels(4)
        .draw()?;
    for (number, (name, points)) in medians.iter().enumerate() {
        let colour = Palette99::pick(number).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
        chart.draw_series(
            points
                .iter()
                .map(|point| Circle::new(*point, 3, colour.filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
