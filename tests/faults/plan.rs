//! What is done in which order: all of it follows from one number.

/// The number, from which the same plan follows again: `CRETO_FAULT_SEED`, else the time.
pub fn seed() -> u64 {
    let now = || std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos().into();
    std::env::var("CRETO_FAULT_SEED").map_or_else(|_| now(), |seed| seed.parse().expect("CRETO_FAULT_SEED is a number"))
}

/// How many claims: `CRETO_FAULT_CLAIMS`, else 200.
pub fn claims() -> usize {
    std::env::var("CRETO_FAULT_CLAIMS").map_or(200, |n| n.parse().expect("CRETO_FAULT_CLAIMS is a number"))
}

/// splitmix64: good enough to choose by, and the same everywhere.
pub struct Dice(u64);

impl Dice {
    /// Dice of their own for each thread, whatever the others throw.
    pub fn of(seed: u64, thread: u64) -> Self {
        Self(seed ^ thread.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// One of these.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// What a caller does with what it has claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Its command ends by itself.
    Ends,
    /// The caller ends it.
    Terminate,
    /// It stays until all is over.
    Stays,
}

/// One claim.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Which; its policy follows from it.
    pub number: usize,
    /// Whose.
    pub caller: usize,
    /// Whether it has an idempotency key, under which it is asked again until there is an answer.
    pub key: bool,
    /// What it does where no member is ready.
    pub on_empty: &'static str,
    /// Why it must fail, if it must.
    pub bad: Option<Bad>,
    /// What becomes of what it gets.
    pub then: Then,
}

/// What nobody may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Another agent's secret.
    Secret,
    /// An agent that was revoked.
    Agent,
}

impl Wish {
    /// The claim of this number.
    pub fn of(number: usize, caller: usize, dice: &mut Dice) -> Self {
        Self {
            number,
            caller,
            key: dice.below(2) == 0,
            on_empty: dice.one(&["wait", "wait", "cold", "fail"]),
            bad: [Some(Bad::Secret), Some(Bad::Agent)].get(dice.below(20)).copied().flatten(),
            then: match dice.below(10) {
                0 => Then::Stays, // they are all there at the end: not too many
                1..6 => Then::Ends,
                _ => Then::Terminate,
            },
        }
    }

    /// To which port it may connect, and nobody else may.
    pub fn port(&self) -> u16 {
        20_000 + self.number as u16
    }
}
