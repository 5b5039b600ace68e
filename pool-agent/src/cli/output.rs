//! How answers are printed: tables for people, JSON for programs. Text from elsewhere cannot move a terminal's cursor.

use std::io::{self, Write};
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

/// A table without lines; of no rows, its heading alone.
pub fn table(out: &mut dyn Write, heading: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> io::Result<()> {
    for line in lines(heading, rows) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// A colour that any terminal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Colour {
    Red,
    Green,
    Yellow,
}

impl Colour {
    /// A text in this colour.
    pub fn paint(self, text: &str) -> String {
        let number = match self {
            Self::Red => 31,
            Self::Green => 32,
            Self::Yellow => 33,
        };
        format!("\u{1b}[{number}m{text}\u{1b}[0m")
    }
}

/// A table whose column `of` is coloured by what stands in it, word by word; no wide characters stand left of it.
pub fn coloured_table(
    out: &mut dyn Write,
    heading: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
    of: &str,
    colour: impl Fn(&str) -> Colour,
) -> io::Result<()> {
    let mut lines = lines(heading, rows).into_iter();
    let first = lines.next().unwrap_or_default();
    let column = first.find(of).map_or(0, |at| first[..at].chars().count());
    writeln!(out, "{first}")?;
    for line in lines {
        let at = line.char_indices().nth(column).map_or(line.len(), |(at, _)| at);
        let (before, rest) = line.split_at(at);
        let (word, behind) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
        writeln!(out, "{before}{}{behind}", colour(word).paint(word))?;
    }
    Ok(())
}

fn lines(heading: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(heading);
    for row in rows {
        table.add_row(row.iter().map(|text| plain(text)));
    }
    // Each cell has a blank on both sides, and every line is as wide as the widest.
    let text = table.to_string();
    text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end().to_owned()).collect()
}

/// One thing with its properties, a line each; what it has not is left out.
pub fn fields(out: &mut dyn Write, fields: &[(&str, Option<String>)]) -> io::Result<()> {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 1;
    for (name, value) in fields {
        if let Some(value) = value {
            writeln!(out, "{:<width$} {}", format!("{name}:"), plain(value))?;
        }
    }
    Ok(())
}

/// One JSON document.
pub fn json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// For people: control characters are shown as escapes.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { plain.extend(c.escape_default()) } else { plain.push(c) }
    }
    plain
}

/// What is not there, in a table.
pub fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".into(), |text| text.to_string())
}

/// How old, in the largest unit that fits: `45m`.
pub fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// So many bytes, as `512.0Mi`.
pub fn bytes(bytes: u64) -> String {
    let (mut amount, mut unit) = (bytes as f64, "");
    for next in ["Ki", "Mi", "Gi", "Ti"] {
        if amount < 1024.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, next);
    }
    if unit.is_empty() { bytes.to_string() } else { format!("{amount:.1}{unit}") }
}

/// So many milliseconds, as people read them: `8.3ms`, `82ms`.
pub fn millis(millis: f64) -> String {
    if millis < 10.0 { format!("{millis:.1}ms") } else { format!("{millis:.0}ms") }
}

/// How much of the whole there is, `width` characters wide.
pub fn bar(part: usize, whole: usize, width: usize) -> String {
    let full = match whole {
        0 => width,
        _ => (part * width / whole).min(width),
    };
    format!("{}{}", "█".repeat(full), "░".repeat(width - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(rows: &[&[&str]]) -> String {
        let mut out = Vec::new();
        let rows = rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect());
        table(&mut out, &["NAME", "WHAT"], rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_stand_in_line_and_lines_have_no_blanks_at_the_end() {
        assert_eq!(printed(&[&["a", "first"], &["longer", "-"]]), "NAME    WHAT\na       first\nlonger  -\n");
        assert_eq!(printed(&[]), "NAME  WHAT\n");
    }

    #[test]
    fn nobody_writes_to_the_terminal_but_us() {
        let text = printed(&[&["\u{1b}[2Jx\n", "ü"]]);
        assert_eq!(text, "NAME          WHAT\n\\u{1b}[2Jx\\n  ü\n");
    }

    #[test]
    fn amounts_are_as_people_say_them() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (2_700, "45m"), (7_199, "1h"), (90_000, "1d")] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
        for (count, text) in [
            (0, "0"),
            (1023, "1023"),
            (1536, "1.5Ki"),
            (512 << 20, "512.0Mi"),
            (3 << 40, "3.0Ti"),
            (1 << 60, "1048576.0Ti"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (of, text) in [(0.04, "0.0ms"), (8.26, "8.3ms"), (82.4, "82ms"), (1234.5, "1234ms")] {
            assert_eq!(millis(of), text);
        }
        for (part, whole, text) in [(0, 4, "░░░░"), (2, 4, "██░░"), (1, 3, "█░░░"), (9, 4, "████"), (0, 0, "████")]
        {
            assert_eq!(bar(part, whole, 4), text);
        }
    }

    #[test]
    fn one_thing_has_a_line_for_each_property() {
        let mut out = Vec::new();
        fields(&mut out, &[("Id", Some("a".into())), ("Name", None), ("Image", Some("x\n".into()))]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "Id:    a\nImage: x\\n\n");
    }
}
