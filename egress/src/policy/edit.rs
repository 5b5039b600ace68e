//! A policy's file with a rule more or less: what its author wrote beside it stays as it is. Pure; `replace` writes it.

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, TomlError, Value, value};

use super::canonical;
use super::model::{Policy, Rule};
use super::parse::{self, BadPolicy, Document};
use super::written::{WrittenPort, WrittenRule};

/// Why a policy was not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It is no policy, before or after.
    #[error(transparent)]
    Policy(#[from] BadPolicy),
    /// It is not TOML.
    #[error(transparent)]
    Toml(#[from] TomlError),
    /// A rule says this already.
    #[error("rule {0} says so already")]
    Already(String),
    /// There is no such rule.
    #[error("no rule {id} here; there are: {there}")]
    NoRule {
        /// Which was asked for.
        id: String,
        /// Which there are.
        there: String,
    },
    /// The text would not say what was wanted.
    #[error("cannot be changed without changing more: edit the file by hand")]
    Unfit,
}

/// The text with one rule more, at the end, and the rule as it is read. Without an id it has its place for one.
pub fn add_rule(text: &str, rule: &WrittenRule) -> Result<(String, Rule), EditError> {
    let before = Document::from_toml(text)?;
    let read = parse::read(rule.clone(), before.policy.rules.len() + 1)?;
    let says = |rule: &Rule| canonical::text(&Policy { rules: vec![rule.clone()] });
    if let Some(same) = before.policy.rules.iter().find(|one| says(one) == says(&read)) {
        return Err(EditError::Already(same.id.clone()));
    }
    let mut toml: DocumentMut = text.parse()?;
    match toml.entry("rules").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new())) {
        Item::ArrayOfTables(rules) => {
            let mut table = Table::new();
            fill(&mut table, rule);
            if !text.trim().is_empty() {
                table.decor_mut().set_prefix("\n");
            }
            rules.push(table);
        }
        Item::Value(Value::Array(rules)) => {
            let mut table = InlineTable::new();
            fill(&mut table, rule);
            rules.push(table);
        }
        _ => return Err(EditError::Unfit),
    }
    let after = toml.to_string();
    let mut wanted = before;
    wanted.policy.rules.push(read.clone());
    if Document::from_toml(&after)? == wanted { Ok((after, read)) } else { Err(EditError::Unfit) }
}

/// The text without a rule, and the rule. Rules without an id that stood behind it move up: their ids are their places.
pub fn remove_rule(text: &str, id: &str) -> Result<(String, Rule), EditError> {
    let mut rules = Document::from_toml(text)?.policy.rules;
    let Some(at) = rules.iter().position(|rule| rule.id == id) else {
        let there: Vec<&str> = rules.iter().map(|rule| rule.id.as_str()).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        return Err(EditError::NoRule { id: id.to_owned(), there });
    };
    let mut toml: DocumentMut = text.parse()?;
    match toml.get_mut("rules") {
        Some(Item::ArrayOfTables(tables)) => drop(tables.remove(at)),
        Some(Item::Value(Value::Array(tables))) => drop(tables.remove(at)),
        _ => return Err(EditError::Unfit),
    }
    let after = toml.to_string();
    let removed = rules.remove(at);
    let left = Document::from_toml(&after)?.policy;
    let same = canonical::text(&left) == canonical::text(&Policy { rules });
    if same { Ok((after, removed)) } else { Err(EditError::Unfit) }
}

impl Document {
    /// Writes TOML; `from_toml` reads the same document from it.
    pub fn to_toml(&self) -> String {
        let mut toml = DocumentMut::new();
        if !self.include.is_empty() {
            toml["include"] = value(self.include.iter().map(ToString::to_string).collect::<Array>());
        }
        let mut rules = ArrayOfTables::new();
        for (place, rule) in (1..).zip(&self.policy.rules) {
            let mut table = Table::new();
            fill(&mut table, &parse::write(rule, place));
            rules.push(table);
        }
        if !rules.is_empty() {
            toml["rules"] = Item::ArrayOfTables(rules);
        }
        toml.to_string()
    }
}

/// Fields in the order in which the documentation shows them.
fn fill(table: &mut dyn TableLike, rule: &WrittenRule) {
    let port = |port: &WrittenPort| match port {
        WrittenPort::Number(number) => Value::from(*number),
        WrittenPort::Text(text) => {
            text.parse::<u16>().map_or_else(|_| text.as_str().into(), |port| i64::from(port).into())
        }
    };
    let text = |text: &Option<String>| text.as_deref().map(Value::from);
    for (field, value) in [
        ("id", text(&rule.id)),
        ("destination", text(&rule.destination)),
        ("ports", rule.ports.as_ref().map(|ports| ports.iter().map(port).collect::<Array>().into())),
        ("protocol", text(&rule.protocol)),
        ("action", text(&rule.action)),
        ("allow_special", rule.allow_special.map(Value::from)),
    ] {
        if let Some(value) = value {
            table.insert(field, Item::Value(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(destination: &str, action: &str) -> WrittenRule {
        WrittenRule {
            destination: Some(destination.into()),
            action: Some(action.into()),
            ports: Some(vec![WrittenPort::Text("443".into()), WrittenPort::Text("8000-8080".into())]),
            ..WrittenRule::default()
        }
    }

    #[test]
    fn a_rule_is_added_and_removed_and_the_rest_stays() {
        let added = "[[rules]]\ndestination = \"b.example\"\nports = [443, \"8000-8080\"]\naction = \"Deny\"\n";
        let inline = "{ destination = \"b.example\", ports = [443, \"8000-8080\"], action = \"Deny\" }";
        for (before, after) in [
            ("", added.to_owned()),
            ("# nothing yet\n", format!("\n{added}# nothing yet\n")),
            (
                "# ours\ninclude = [ \"base\" ] # all\n\n[[rules]] # first\naction = \"Allow\"  # yes\ndestination = \"a.example\"\n",
                format!(
                    "# ours\ninclude = [ \"base\" ] # all\n\n[[rules]] # first\naction = \"Allow\"  # yes\ndestination = \"a.example\"\n\n{added}"
                ),
            ),
            (
                "rules = [{ destination = \"a.example\", action = \"Allow\" }] # short\n",
                format!("rules = [{{ destination = \"a.example\", action = \"Allow\" }}, {inline}] # short\n"),
            ),
        ] {
            let (text, read) = add_rule(before, &rule("b.example", "Deny")).unwrap_or_else(|e| panic!("{before}: {e}"));
            assert_eq!(text, after);
            let (text, removed) = remove_rule(&text, &read.id).unwrap();
            assert_eq!(removed, read);
            assert_eq!(Document::from_toml(&text), Document::from_toml(before), "{text}");
        }
    }

    #[test]
    fn what_would_be_no_policy_is_not_written() {
        let one = "[[rules]]\nid = \"x\"\ndestination = \"a.example\"\naction = \"Allow\"\n";
        for (text, add, why) in [
            (one, rule("*", "Allow"), "rule 2: destination"),
            (one, rule("b.example", "allow"), "rule 2: action"),
            (one, WrittenRule { id: Some("x".into()), ..rule("b.example", "Allow") }, "rule x: id: another"),
            (
                one,
                WrittenRule { id: Some("y".into()), ports: None, ..rule("A.example", "Allow") },
                "rule x says so already",
            ),
            (one, WrittenRule::default(), "rule 2: destination: missing"),
            ("[[rules]]", rule("b.example", "Allow"), "rule 1: destination: missing"),
            ("rules = 1", rule("b.example", "Allow"), "list of rules"),
        ] {
            let error = add_rule(text, &add).expect_err(why).to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
        let error = remove_rule(one, "1").unwrap_err().to_string();
        assert!(error.contains("no rule 1 here; there are: x"), "{error}");
        assert!(remove_rule("", "1").unwrap_err().to_string().contains("none"));
    }
}
