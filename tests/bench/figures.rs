//! Samples, and what of them is printed.

use std::time::Duration;

/// Of one thing, in milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// One more.
    pub fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e3);
    }

    /// One more, in microseconds, as the agent says it.
    pub fn add_micros(&mut self, micros: u64) {
        self.0.push(micros as f64 / 1e3);
    }

    /// Others of the same.
    pub fn append(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest sample that so many of a hundred do not exceed.
    pub fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(rank).copied().unwrap_or(f64::NAN)
    }

    /// p50 | p95 | p99 | max | N, as cells of a table.
    pub fn cells(&self) -> String {
        let cells = [50, 95, 99, 100].map(|percent| format!("{:.1}", self.percentile(percent)));
        format!("{} | {}", cells.join(" | "), self.len())
    }
}

impl Extend<Duration> for Samples {
    fn extend<I: IntoIterator<Item = Duration>>(&mut self, more: I) {
        more.into_iter().for_each(|took| self.add(took));
    }
}

/// What the machine is, as docs/benchmarks.md names it.
pub fn machine() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpus, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let of = |text: &str, key: &str| {
        text.lines().find_map(|line| line.strip_prefix(key)?.split_once(':').map(|(_, v)| v.trim().to_owned()))
    };
    let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kib: u64 = of(&memory, "MemTotal").and_then(|v| v.strip_suffix(" kB")?.parse().ok()).unwrap_or_default();
    println!("\n- cpu: {cores} × {}", of(&cpus, "model name").unwrap_or_default());
    println!("- kernel: {}", read("/proc/sys/kernel/osrelease").trim());
    println!("- memory: {} GiB", (kib + (1 << 19)) >> 20);
    println!("- load at the end: {} (1 minute)", read("/proc/loadavg").split(' ').next().unwrap_or_default());
}

/// Numbers that look random and are the same in every run (Knuth's MMIX generator).
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The time to the next of events that come `rate` times a second on the average, and know nothing of each other.
    pub fn pause(&mut self, rate: f64) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = ((self.0 >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        Duration::from_secs_f64(-uniform.ln() / rate)
    }
}
