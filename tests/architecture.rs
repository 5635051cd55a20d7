//! Which part of the crate may know which: read from the sources, so that an arrow that points
//! back fails here and not in a review.
//!
//! ```text
//! hosts ──▶ api ──▶ actors ──┬──▶ store ────┐
//!                            └──▶ engines ──┴──▶ model
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A folder under `src`, and the parts of the crate that it must not mention.
const LAYERS: &[(&str, &[&str])] = &[
    ("src/model/", &["store", "actors", "engines", "api"]),
    ("src/store/", &["actors", "engines", "api"]),
    ("src/engines/", &["actors", "store", "api"]),
    ("src/actors/", &["api"]),
];

/// Where alone a crate may be used. A prefix of the path.
const CRATES: &[(&str, &str)] = &[
    ("sled", "src/store/"),
    ("ractor", "src/actors/"),
    ("bincode", "src/store/codec"),
];

/// Where alone time is read.
/// Where time is measured and not told: prefixes of paths, each with its reason.
const MAY_MEASURE: &[(&str, &str)] = &[
    (
        "src/engines/command",
        "deadlines of tokio's timer; engines must not know the store",
    ),
    (
        "src/store/sled_kv/tests/measure.rs",
        "an ignored test that measures",
    ),
];

const CLOCK: &str = "src/store/clock.rs";

/// What the pure model knows nothing of: clocks, randomness, async.
const IMPURE: &[&[&str]] = &[
    &["SystemTime"],
    &["Instant", "::", "now"],
    &["rand", "::"],
    &["Uuid", "::", "new"],
    &["Uuid", "::", "new_v4"],
    &["tokio"],
    &["async"],
];

/// Longest file of the sources and examples, in lines.
const LINES_MAX: usize = 600;

/// Files that are longer, and why that is right.
const LONG_FILES: &[(&str, &str)] = &[];

/// A word or a mark of the source, with its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

/// Cuts a source into words and marks, without comments and without the insides of literals.
fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut rest = source;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let taken = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = literal(rest) {
            length
        } else if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let (text, after) = rest.split_at(taken);
        let is_code = !text.starts_with("//") && !text.starts_with("/*");
        if is_code && !first.is_whitespace() && !text.contains(['"', '\'']) {
            found.push(Token { text, line });
        }
        line += text.matches('\n').count();
        rest = after;
    }
    found
}

/// The length of a block comment, nested ones included.
fn block_comment(source: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(rest) = source.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The length of the string, character or lifetime that a source begins with, if it does.
fn literal(source: &str) -> Option<usize> {
    let unprefixed = source
        .strip_prefix("br")
        .or_else(|| source.strip_prefix("cr"))
        .or_else(|| source.strip_prefix('r'));
    if let Some(raw) = unprefixed {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let opened = raw.get(hashes..)?;
        if let Some(inside) = opened.strip_prefix('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let prefix = source.len() - inside.len();
            return Some(prefix + inside.find(&end).map_or(inside.len(), |at| at + end.len()));
        }
    }
    let plain = source.strip_prefix(['b', 'c']).unwrap_or(source);
    let prefix = source.len() - plain.len();
    if let Some(inside) = plain.strip_prefix('"') {
        return Some(prefix + 1 + quoted(inside, '"'));
    }
    let inside = plain.strip_prefix('\'')?;
    let mut chars = inside.chars();
    match (chars.next()?, chars.next()) {
        ('\\', _) | (_, Some('\'')) => Some(prefix + 1 + quoted(inside, '\'')),
        // A lifetime: the mark and its name, which is no word of the code.
        _ => Some(
            prefix
                + 1
                + inside
                    .find(|c: char| !c.is_alphanumeric() && c != '_')
                    .unwrap_or(inside.len()),
        ),
    }
}

/// The length of what is quoted, the closing mark included.
fn quoted(inside: &str, mark: char) -> usize {
    let mut escaped = false;
    for (at, c) in inside.char_indices() {
        if !escaped && c == mark {
            return at + c.len_utf8();
        }
        escaped = !escaped && c == '\\';
    }
    inside.len()
}

/// Modules of the crate's root that a source mentions, however it spells the path to them.
fn root_modules<'a>(path: &str, code: &[Token<'a>]) -> Vec<Token<'a>> {
    let file_depth = module_depth(path);
    let mut found = Vec::new();
    // The nesting of braces, and at which nesting inline modules began.
    let mut braces = 0_usize;
    let mut inline: Vec<usize> = Vec::new();
    for (at, token) in code.iter().enumerate() {
        match token.text {
            "{" => {
                braces += 1;
                if at >= 2 && code[at - 2].text == "mod" {
                    inline.push(braces);
                }
            }
            "}" => {
                if inline.last() == Some(&braces) {
                    inline.pop();
                }
                braces = braces.saturating_sub(1);
            }
            "crate" => after(code, at + 1, &mut found),
            "super" if at < 2 || code[at - 1].text != "::" => {
                let mut end = at;
                let mut supers = 1;
                while code.get(end + 1).is_some_and(|next| next.text == "::")
                    && code.get(end + 2).is_some_and(|next| next.text == "super")
                {
                    end += 2;
                    supers += 1;
                }
                if supers == file_depth + inline.len() {
                    after(code, end + 1, &mut found);
                }
            }
            _ => {}
        }
    }
    found
}

/// How many modules a file is below the crate's root.
fn module_depth(path: &str) -> usize {
    let parts = path.split('/').skip(1);
    parts
        .filter(|part| !matches!(*part, "mod.rs" | "lib.rs" | "main.rs"))
        .count()
}

/// The first segments that follow on a path to the root: one, or those of a group.
fn after<'a>(code: &[Token<'a>], at: usize, found: &mut Vec<Token<'a>>) {
    if code.get(at).is_none_or(|token| token.text != "::") {
        return;
    }
    let Some(first) = code.get(at + 1) else {
        return;
    };
    if first.text != "{" {
        found.push(*first);
        return;
    }
    let mut depth = 0_usize;
    let mut begins = false;
    for token in &code[at + 1..] {
        match token.text {
            "{" => {
                depth += 1;
                begins = depth == 1;
            }
            "}" => {
                depth -= 1;
                if depth == 0 {
                    return;
                }
            }
            "," => begins = depth == 1,
            _ => {
                if begins {
                    found.push(*token);
                }
                begins = false;
            }
        }
    }
}

/// Where a crate is used: a path that begins with it, or its import.
fn uses_of<'a>(code: &[Token<'a>], krate: &str) -> Vec<Token<'a>> {
    let is_use = |at: usize| {
        let before = at.checked_sub(1).map(|before| code[before].text);
        let path = code.get(at + 1).is_some_and(|next| next.text == "::");
        let attribute = before == Some("[");
        (path && before != Some("::")) || matches!(before, Some("use" | "crate")) || attribute
    };
    code.iter()
        .enumerate()
        .filter(|(at, token)| token.text == krate && is_use(*at))
        .map(|(_, token)| *token)
        .collect()
}

/// Where a sequence of tokens stands.
fn places<'a>(code: &[Token<'a>], sequence: &[&str]) -> Vec<Token<'a>> {
    code.windows(sequence.len())
        .filter(|window| {
            window
                .iter()
                .map(|token| token.text)
                .eq(sequence.iter().copied())
        })
        .filter_map(|window| window.first().copied())
        .collect()
}

/// What is wrong with a file, one line for each.
fn violations(path: &str, source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = source.lines().count();
    let excused = LONG_FILES.iter().any(|(file, _)| *file == path);
    match (lines > LINES_MAX, excused) {
        (true, false) => found.push(format!("{path}: {lines} lines, more than {LINES_MAX}")),
        (false, true) => found.push(format!("{path}: is not long any more, strike it off")),
        (true, true) | (false, false) => {}
    }
    if !path.starts_with("src/") {
        return found;
    }
    let code = tokens(source);
    for (layer, forbidden) in LAYERS {
        if path.starts_with(layer) {
            for Token { text, line } in root_modules(path, &code) {
                if forbidden.contains(&text) {
                    found.push(format!(
                        "{path}:{line}: {layer} must not know crate::{text}"
                    ));
                } else if text.starts_with(|c: char| c == '*' || c.is_uppercase()) {
                    // The root's re-exports hide where they lead.
                    found.push(format!(
                        "{path}:{line}: crate::{text} goes through the root"
                    ));
                }
            }
        }
    }
    for (krate, home) in CRATES {
        if !path.starts_with(home) {
            for Token { line, .. } in uses_of(&code, krate) {
                found.push(format!("{path}:{line}: {krate} belongs into {home}"));
            }
        }
    }
    let timers = MAY_MEASURE
        .iter()
        .any(|(prefix, _)| path.starts_with(prefix));
    if path != CLOCK && !timers {
        for clock in ["SystemTime", "Instant"] {
            for Token { line, .. } in places(&code, &[clock, "::", "now"]) {
                found.push(format!("{path}:{line}: time is read in {CLOCK}"));
            }
        }
    }
    if path.starts_with("src/model/") {
        for impure in IMPURE {
            for Token { line, .. } in places(&code, impure) {
                found.push(format!(
                    "{path}:{line}: the model is pure: {}",
                    impure.concat()
                ));
            }
        }
    }
    found
}

/// Every Rust source below a folder, as (path from the root of the repository, text).
fn sources(root: &Path, folder: &str) -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut pending: Vec<PathBuf> = vec![root.join(folder)];
    while let Some(next) = pending.pop() {
        if !next.exists() {
            continue;
        }
        for entry in fs::read_dir(&next)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path)?;
                let name = path.strip_prefix(root).unwrap_or(&path);
                let parts: Vec<String> = name
                    .components()
                    .map(|part| part.as_os_str().to_string_lossy().into_owned())
                    .collect();
                found.push((parts.join("/"), text));
            }
        }
    }
    Ok(found)
}

#[test]
fn no_arrow_points_back_and_each_thing_has_one_home() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = sources(root, "src").unwrap();
    assert!(
        files.len() > 20,
        "the sources were not found: {}",
        files.len()
    );
    files.extend(sources(root, "examples").unwrap());
    let wrong: Vec<String> = files
        .iter()
        .flat_map(|(path, text)| violations(path, text))
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    for (file, reason) in LONG_FILES {
        assert!(
            files.iter().any(|(path, _)| path == file),
            "{file} is gone: {reason}"
        );
    }
}

#[test]
fn a_planted_violation_is_caught() {
    for (path, text) in [
        // Every way to spell the way back.
        ("src/model/decide.rs", "use crate::store::Store;"),
        ("src/model/decide.rs", "fn f() { crate::actors::go() }"),
        (
            "src/model/decide.rs",
            "use crate::{model::Error, engines::{self, X}};",
        ),
        ("src/model/decide.rs", "use crate::{\n    api,\n};"),
        ("src/model/decide.rs", "use super::super::store::Store;"),
        ("src/model/decide.rs", "use super::super::{engines};"),
        ("src/model/mod.rs", "use super::store::Store;"),
        ("src/model/decide.rs", "use crate::*;"),
        (
            "src/model/decide.rs",
            "use crate::{model::Error, Supervisor};",
        ),
        ("src/model/a/b.rs", "use super::super::super::store::Store;"),
        (
            "src/model/decide.rs",
            "mod tests { use super::super::super::store::X; }",
        ),
        (
            "src/model/decide.rs",
            "mod a { mod b {} } use super::super::api::X;",
        ),
        ("src/model/decide.rs", "pub(in crate::store) fn f() {}"),
        ("src/model/decide.rs", "/* a /* b */ c */ use crate::store;"),
        (
            "src/model/decide.rs",
            "const A: &str = \"\\\"\"; use crate::store;",
        ),
        (
            "src/model/decide.rs",
            "const A: char = '\"'; use crate::store; const B: char = '\"';",
        ),
        (
            "src/model/decide.rs",
            "fn f<'a>(x: &'a str) { crate::store::g(x) }",
        ),
        ("src/store/sled.rs", "use crate::actors::Handle;"),
        ("src/store/sled.rs", "use crate::engines::ProcessEngine;"),
        ("src/store/sled.rs", "use crate::api::Processes;"),
        ("src/engines/command.rs", "use crate::store::Store;"),
        ("src/engines/command.rs", "use crate::actors::Handle;"),
        ("src/engines/command.rs", "use crate::api::Processes;"),
        ("src/actors/reaper.rs", "use crate::api::Processes;"),
        // What belongs into one place.
        ("src/actors/reaper.rs", "use sled::Db;"),
        ("src/api/mod.rs", "use {sled::Db};"),
        ("src/lib.rs", "use sled as s;"),
        ("src/lib.rs", "extern crate sled;"),
        ("src/store/mod.rs", "use ractor::Actor;"),
        ("src/api/mod.rs", "async fn f() { ractor::call().await }"),
        ("src/store/keys.rs", "use bincode::config;"),
        ("src/model/event.rs", "#[derive(bincode::Encode)] struct A;"),
        ("src/model/event.rs", "#[bincode(skip)] struct A;"),
        ("src/actors/reaper.rs", "let now = Instant::now();"),
        (
            "src/actors/reaper.rs",
            "let now = std::time::SystemTime :: now();",
        ),
        ("src/store/kv.rs", "let now = tokio::time::Instant::now();"),
        // What the model is pure of.
        ("src/model/decide.rs", "use std::time::SystemTime;"),
        ("src/model/decide.rs", "let x = rand::random();"),
        ("src/model/decide.rs", "let x = Uuid::new_v4();"),
        ("src/model/decide.rs", "use tokio::sync::Mutex;"),
        ("src/model/decide.rs", "async fn f() {}"),
    ] {
        let found = violations(path, text);
        assert!(!found.is_empty(), "{path}: {text}");
        assert!(found[0].starts_with(path), "{found:?}");
    }
}

#[test]
fn what_is_allowed_is_left_alone() {
    for (path, text) in [
        // Comments, documentation and texts import nothing.
        ("src/model/decide.rs", "// use crate::store::Store;"),
        (
            "src/model/decide.rs",
            "//! as [`crate::actors`] does with ractor::Actor",
        ),
        (
            "src/model/decide.rs",
            "/* use crate::store; /* nested */ sled::open() */",
        ),
        (
            "src/model/decide.rs",
            "const A: &str = \"use crate::store;\";",
        ),
        (
            "src/model/decide.rs",
            "const A: &str = r#\"crate::store \" sled::open\"#;",
        ),
        (
            "src/model/decide.rs",
            "const A: &[u8] = b\"crate::store\"; const B: char = '\\'';",
        ),
        // The arrows as they are drawn.
        (
            "src/model/decide.rs",
            "use super::error::Error; use crate::model::Result;",
        ),
        (
            "src/model/decide.rs",
            "mod tests { use super::super::store_like::X; }",
        ),
        // Three levels below, two steps up lead into the model.
        ("src/model/a/b.rs", "use super::super::store::X;"),
        (
            "src/store/sled.rs",
            "use crate::model::Error; use sled::Db;",
        ),
        ("src/engines/mod.rs", "use crate::model::Error;"),
        (
            "src/actors/mod.rs",
            "use crate::{engines, model, store}; use ractor::Actor;",
        ),
        (
            "src/api/mod.rs",
            "use crate::{actors, engines, model, store};",
        ),
        (
            "src/lib.rs",
            "mod store; mod actors; pub use api::Processes;",
        ),
        ("src/store/codec.rs", "use bincode::config;"),
        ("src/store/codec/stored.rs", "use bincode::config;"),
        (
            "src/store/clock.rs",
            "let a = (Instant::now(), SystemTime::now());",
        ),
        // Names that only look alike.
        ("src/store/mod.rs", "mod sled_kv; mod memory_kv;"),
        (
            "src/actors/mod.rs",
            "let sled = 1; let x = crate::store::sled_kv::open(sled);",
        ),
        (
            "src/actors/mod.rs",
            "let due = clock.now() + Instant::from(x);",
        ),
        (
            "src/model/event.rs",
            "let operand = 1; let brand = operand;",
        ),
        (
            "examples/supervisor/main.rs",
            "use std::time::Instant; let x = Instant::now();",
        ),
    ] {
        let found = violations(path, text);
        assert!(found.is_empty(), "{path}: {text}: {found:?}");
    }
}

#[test]
fn a_long_file_is_caught() {
    let lines = |count: usize| "//\n".repeat(count);
    for path in ["src/api/mod.rs", "examples/supervisor/main.rs"] {
        assert!(violations(path, &lines(600)).is_empty());
        assert_eq!(
            violations(path, &lines(601)),
            [format!("{path}: 601 lines, more than 600")]
        );
    }
}

#[test]
fn a_violation_says_its_line() {
    let text = "// one\n/* two\nthree */\nconst A: &str = \"\nfive\";\nuse crate::store::Store;\n";
    assert_eq!(
        violations("src/model/a.rs", text),
        ["src/model/a.rs:6: src/model/ must not know crate::store"]
    );
}
