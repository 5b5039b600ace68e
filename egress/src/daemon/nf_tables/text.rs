//! Changes as people read them: in golden files. Bytes are in hexadecimal, keys are the kernel's numbers.

use std::fmt;

use super::{Change, Family, Hook, Load, Step, Verdict};

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(family) => write!(f, "table {family}"),
            Self::VerdictMap(name, _, length) => write!(f, "map {name}: {length} bytes → verdict"),
            Self::Chain(family, name, None) => write!(f, "chain {family} {name}"),
            Self::Chain(family, name, Some(hook)) => {
                let Hook { kind, number, priority, device, accept } = hook;
                let device = device.as_deref().map(|device| format!(" on {device}")).unwrap_or_default();
                let policy = if *accept { "accept" } else { "drop" };
                write!(f, "chain {family} {name}: {kind} hook {number}{device} at {priority}, else {policy}")
            }
            Self::Flush(family, name) => write!(f, "flush {family} {name}"),
            Self::DropChain(family, name) => write!(f, "drop {family} {name}"),
            Self::Append(_, name, rule) => {
                write!(f, "  {name}:")?;
                rule.iter().try_for_each(|step| write!(f, " {step}"))
            }
            Self::Put(map, key, verdict) => write!(f, "put {map} {} → {verdict}", Hex(key)),
            Self::Take(map, key) => write!(f, "take {map} {}", Hex(key)),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Inet { "inet" } else { "netdev" })
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(Load::Meta(key)) => write!(f, "meta[{key}]"),
            Self::Load(Load::Ct(key)) => write!(f, "ct[{key}]"),
            Self::Load(Load::CtDir(key, 0)) => write!(f, "ct.original[{key}]"),
            Self::Load(Load::CtDir(key, _)) => write!(f, "ct.reply[{key}]"),
            Self::Load(Load::Bytes(header, at, length)) => write!(f, "{header:?}[{at}+{length}]"),
            Self::And(mask) => write!(f, "& {}", Hex(mask)),
            Self::Is(value) => write!(f, "= {}", Hex(value)),
            Self::IsNot(value) => write!(f, "≠ {}", Hex(value)),
            Self::Within(from, to) => write!(f, "in {}–{}", Hex(from), Hex(to)),
            Self::Map(map) => write!(f, "→ {map}"),
            Self::Mark(mark) => write!(f, "mark {mark:#x}"),
            Self::Limit(rate) => write!(f, "limit {rate}/s"),
            Self::Log(group) => write!(f, "log {group}"),
            Self::Count => f.write_str("count"),
            Self::Reset => f.write_str("reset"),
            Self::Prohibit => f.write_str("prohibit"),
            Self::Redirect(port) => write!(f, "redirect {port}"),
            Self::Then(verdict) => write!(f, "{verdict}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}
