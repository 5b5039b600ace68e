//! Reads a document of ours as its readers do: which blocks of commands it has, of which scenario, and what they are to print.

/// A block of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The scenario it belongs to: the last `<!-- scenario: NAME -->` before it.
    pub scenario: String,
    /// The line of the document that it begins at.
    pub line: usize,
    /// The commands.
    pub commands: String,
    /// What it must print in the end, by line: its `# Expected:` comments. `watch` waits for it.
    pub awaited: Vec<String>,
    /// What else it must print, by line: the block of text that follows.
    pub shown: Vec<String>,
}

/// All blocks of commands, in order. One that belongs to no scenario fails the test.
#[track_caller]
pub fn blocks(document: &str) -> Vec<Block> {
    let (mut blocks, mut scenario, mut lines) = (Vec::<Block>::new(), None, document.lines().enumerate());
    let mut answers = false; // whether the block before is one of commands, with nothing but blank lines since
    while let Some((at, line)) = lines.next() {
        if let Some(name) = line.strip_prefix("<!-- scenario: ").and_then(|rest| rest.strip_suffix(" -->")) {
            scenario = Some(name.to_owned());
        }
        let Some(language) = line.strip_prefix("```") else {
            answers &= line.is_empty();
            continue;
        };
        let body: Vec<&str> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
        match language {
            "bash" => {
                let scenario = scenario.clone().unwrap_or_else(|| panic!("line {}: of which scenario?", at + 1));
                let awaited = body.iter().filter_map(|line| line.trim_start().strip_prefix("# Expected: "));
                let (awaited, commands) = (awaited.map(str::to_owned).collect(), body.join("\n"));
                blocks.push(Block { scenario, line: at + 1, commands, awaited, shown: Vec::new() });
            }
            "text" if answers => {
                let shown = body.iter().filter(|line| !line.trim().is_empty()).map(|line| (*line).to_owned());
                blocks.last_mut().expect("a block of commands").shown.extend(shown);
            }
            _ => {}
        }
        answers = language == "bash";
    }
    blocks
}

/// An expected line, the whole of it, as a pattern of `grep -E`: `…` is anything, `[2-4]` one of them, blanks are as many as there are, and so is how long something took.
pub fn pattern(expected: &str) -> String {
    let words = expected.split_whitespace().map(|word| {
        let (core, unit) = ["ms", "s", "m", "%"]
            .into_iter()
            .find_map(|unit| Some((word.trim_end_matches(',').strip_suffix(unit)?, unit)))
            .unwrap_or((word, ""));
        let measured =
            core.chars().all(|c| c.is_ascii_digit() || c == '.') && core.starts_with(|c: char| c.is_ascii_digit());
        if measured && (!unit.is_empty() || core.contains('.')) && core.matches('.').count() <= 1 {
            return format!("[0-9.]+{unit}{}", if word.ends_with(',') { "," } else { "" });
        }
        let mut literal = String::new();
        for (at, c) in word.char_indices() {
            let of_a_range =
                |from: usize| matches!(word.as_bytes()[from..], [b'[', b'0'..=b'9', b'-', b'0'..=b'9', b']', ..]);
            match c {
                '[' if of_a_range(at) => literal.push(c),
                ']' if at >= 4 && of_a_range(at - 4) => literal.push(c),
                '…' => literal.push_str(".*"),
                c if c.is_alphanumeric() || "_-/:,\"'<>=%#@!~&; ".contains(c) => literal.push(c),
                c => literal.extend(['\\', c]),
            }
        }
        literal
    });
    format!("^ *{} *$", words.collect::<Vec<_>>().join(" +"))
}

#[test]
fn blocks_are_found_with_what_they_print() {
    let document = "# A\n<!-- scenario: one -->\n```bash\nls\n# Expected: a\n```\n\n```text\nb 1.5ms\n\nc\n```\n```text\nno\n```\n```bash\nx\n```\nwords\n```text\nno\n```\n";
    let found = blocks(document);
    let found: Vec<_> = found
        .iter()
        .map(|block| (block.line, &*block.scenario, block.awaited.join("|"), block.shown.join("|")))
        .collect();
    let (a, bc, nothing) = ("a".to_owned(), "b 1.5ms|c".to_owned(), String::new);
    assert_eq!(found, [(3, "one", a, bc), (16, "one", nothing(), nothing())]);
}

#[test]
fn what_is_shown_is_matched_but_for_what_differs_each_time() {
    for (shown, pattern_of_it) in [
        ("Ready: 3/20", r"Ready: +3/20"),
        ("P99 claim latency: 95ms", r"P99 +claim +latency: +[0-9.]+ms"),
        ("Claims/min: 15.3", r"Claims/min: +[0-9.]+"),
        ("Ready: [2-4]/4", "Ready: +[2-4]/4"),
        ("{\"a\":[…]}", "\\{\"a\":\\[.*\\]\\}"),
        ("(take 0.3ms, b…)", r"\(take +[0-9.]+ms, +b.*\)"),
    ] {
        assert_eq!(pattern(shown), format!("^ *{pattern_of_it} *$"));
    }
}
