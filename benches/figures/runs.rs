//! Several runs of the same figures: the middle of each number, and how far they lie apart.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

static PRINTED: Mutex<Vec<Value>> = Mutex::new(Vec::new());

fn printed() -> MutexGuard<'static, Vec<Value>> {
    PRINTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a line that was printed.
pub(crate) fn keep(line: &Value) {
    printed().push(line.clone());
}

/// The lines that were printed since the last look.
pub(crate) fn take() -> Vec<Value> {
    std::mem::take(&mut *printed())
}

/// One line for those that all runs printed in the same place.
pub(crate) fn medians(runs: &[Vec<Value>]) -> Vec<Value> {
    let places = runs.iter().map(Vec::len).min().unwrap_or(0);
    (0..places)
        .filter_map(|at| median(&runs.iter().map(|run| &run[at]).collect::<Vec<_>>()))
        .collect()
}

/// What is the same in all lines stands as it is. Of a number that is not, the middle one (the higher of
/// two) stands under its name, and the lowest and the highest beside it; so within objects. What else differs
/// is left out, but lines whose text differs are about different things and give none.
fn median(lines: &[&Value]) -> Option<Value> {
    let mut of_all = medians_of(lines)?;
    of_all.insert("median_of".to_owned(), lines.len().into());
    Some(of_all.into())
}

fn medians_of(objects: &[&Value]) -> Option<Map<String, Value>> {
    let mut of_all = Map::new();
    for (name, first) in objects.first()?.as_object()? {
        let mut values: Vec<&Value> = objects.iter().map(|line| &line[name.as_str()]).collect();
        if values.iter().all(|value| *value == first) {
            of_all.insert(name.clone(), first.clone());
            continue;
        }
        if first.is_string() {
            return None;
        }
        if values.iter().all(|value| value.is_object()) {
            let within = medians_of(&values).map(Value::from);
            of_all.extend(within.map(|within| (name.clone(), within)));
            continue;
        }
        // A run that could not measure it has none.
        values.retain(|value| value.is_number());
        values.sort_by(|a, b| number(a).total_cmp(&number(b)));
        if let (Some(lowest), Some(highest)) = (values.first(), values.last()) {
            of_all.insert(name.clone(), values[values.len() / 2].clone());
            of_all.insert(format!("{name}_lowest"), (*lowest).clone());
            of_all.insert(format!("{name}_highest"), (*highest).clone());
        }
    }
    Some(of_all)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}
