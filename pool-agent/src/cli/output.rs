//! How answers are printed: tables for people, JSON for programs. Text from elsewhere cannot move a terminal's cursor.

use std::io::{self, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

/// A table without lines; of no rows, its heading alone.
pub fn table(out: &mut dyn Write, heading: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(heading);
    for row in rows {
        table.add_row(row.iter().map(|text| plain(text)));
    }
    // Each cell has a blank on both sides, and every line is as wide as the widest.
    for line in table.to_string().lines() {
        writeln!(out, "{}", line.strip_prefix(' ').unwrap_or(line).trim_end())?;
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
}
