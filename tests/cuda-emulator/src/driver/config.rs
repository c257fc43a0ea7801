//! The configuration of the devices from the environment. The module documentation of `driver` has a table of the variables.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::SystemTime;

pub(super) struct Config {
    pub(super) devices: usize,
    pub(super) driver_version: u32,
    pub(super) capability: Capability,
    pub(super) multiprocessors: u32,
    pub(super) memory: u64,
    pub(super) concurrent_managed: bool,
    pub(super) threads: usize,
    pub(super) stream_order: StreamOrder,
    /// Whether `cuMemFree` and `cuMemFreeHost` do not wait for queued work.
    pub(super) frees_at_once: bool,
    /// Whether copies from and to pageable memory may still be queued when the call returns.
    pub(super) late_copies: bool,
    pub(super) registers: Registers,
    /// Whether the driver does not report that it is an emulator.
    pub(super) anonymous: bool,
}

/// Which of several unordered streams runs first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamOrder {
    Newest,
    Oldest,
    /// Operations run in a random order with this seed.
    Random(u64),
}

impl FromStr for StreamOrder {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(':') {
            None if text == "newest" => Ok(Self::Newest),
            None if text == "oldest" => Ok(Self::Oldest),
            None if text == "random" => Ok(Self::Random(fresh_seed())),
            Some(("random", seed)) => seed.parse().map(Self::Random).map_err(|_| ()),
            _ => Err(()),
        }
    }
}

/// Returns a seed that differs between runs.
fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanoseconds = now.map_or(0, |now| now.as_nanos() as u64);
    nanoseconds ^ u64::from(std::process::id()) << 32
}

/// Registers per thread, by the name of a kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Registers(HashMap<String, u32>);

impl Registers {
    /// Returns the registers per thread of a kernel, or 0 if it is not in the table.
    pub(super) fn of(&self, kernel: &str) -> u32 {
        self.0.get(kernel).copied().unwrap_or(0)
    }

    /// Parses lines with the name of a kernel and its number of registers. A line that starts with # is a comment.
    fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim);
        let rows = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let row = |line: &str| {
            let (name, number) = line.split_once(' ')?;
            let number = number.trim().parse().ok()?;
            (1..=255)
                .contains(&number)
                .then(|| (name.to_owned(), number))
        };
        rows.map(row).collect::<Option<_>>().map(Self)
    }
}

impl FromStr for Registers {
    type Err = ();

    /// Reads the table from the file with this path.
    fn from_str(path: &str) -> Result<Self, ()> {
        let text = std::fs::read_to_string(path).map_err(|_| ())?;
        Self::parse(&text).ok_or(())
    }
}

/// The compute capability, as `9.0`.
#[derive(Clone, Copy)]
pub(super) struct Capability {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Capability {
    /// Returns the notation of PTX targets: 90 for 9.0.
    pub(super) fn target(self) -> u32 {
        self.major * 10 + self.minor
    }
}

impl FromStr for Capability {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once('.').ok_or(())?;
        Ok(Self {
            major: major.parse().map_err(|_| ())?,
            minor: minor.parse().map_err(|_| ())?,
        })
    }
}

/// An environment variable with an invalid value.
pub(super) struct BadVariable {
    name: &'static str,
    given: String,
}

impl fmt::Display for BadVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {:?}, which cannot be read", self.name, self.given)
    }
}

impl Config {
    /// Returns the configuration of this process.
    pub(super) fn get() -> Result<&'static Self, &'static BadVariable> {
        static CONFIG: OnceLock<Result<Config, BadVariable>> = OnceLock::new();
        CONFIG
            .get_or_init(|| Self::read(|name| std::env::var(name).ok()))
            .as_ref()
    }

    fn read(variable: impl Fn(&'static str) -> Option<String>) -> Result<Self, BadVariable> {
        fn parsed<T: FromStr>(
            name: &'static str,
            given: Option<String>,
            default: T,
        ) -> Result<T, BadVariable> {
            match given {
                None => Ok(default),
                Some(given) => given.parse().map_err(|_| BadVariable { name, given }),
            }
        }
        macro_rules! get {
            ($name:literal, $default:expr) => {
                parsed($name, variable($name), $default)?
            };
        }
        /// Returns whether the value is the second of two words. The first is the default.
        fn second(
            name: &'static str,
            given: Option<String>,
            words: [&str; 2],
        ) -> Result<bool, BadVariable> {
            match given {
                None => Ok(false),
                Some(given) if given == words[0] => Ok(false),
                Some(given) if given == words[1] => Ok(true),
                Some(given) => Err(BadVariable { name, given }),
            }
        }
        macro_rules! choose {
            ($name:literal, $words:expr) => {
                second($name, variable($name), $words)?
            };
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            devices: get!("LION_EMULATED_DEVICES", 1),
            driver_version: get!("LION_EMULATED_DRIVER_VERSION", 12_000),
            capability: get!(
                "LION_EMULATED_COMPUTE_CAPABILITY",
                Capability { major: 9, minor: 0 }
            ),
            multiprocessors: get!("LION_EMULATED_MULTIPROCESSORS", 4),
            memory: get!("LION_EMULATED_MEMORY", 1 << 30),
            concurrent_managed: get!("LION_EMULATED_CONCURRENT_MANAGED", 1_u8) != 0,
            threads: get!("LION_EMULATED_THREADS", threads).max(1),
            stream_order: get!("LION_EMULATED_STREAM_ORDER", StreamOrder::Newest),
            frees_at_once: choose!("LION_EMULATED_FREE", ["waits", "now"]),
            late_copies: choose!("LION_EMULATED_PAGEABLE_COPIES", ["prompt", "late"]),
            registers: get!("LION_EMULATED_REGISTERS", Registers::default()),
            anonymous: choose!("LION_EMULATED_ANONYMOUS", ["0", "1"]),
        })
    }

    /// Returns the newest PTX version that a driver of this version supports.
    pub(super) fn newest_ptx(&self) -> (u32, u32) {
        // (driver, PTX) from the release history in NVIDIA's PTX ISA manual.
        const RELEASES: [(u32, (u32, u32)); 24] = [
            (9_000, (6, 0)),
            (9_010, (6, 1)),
            (9_020, (6, 2)),
            (10_000, (6, 3)),
            (10_010, (6, 4)),
            (10_020, (6, 5)),
            (11_000, (7, 0)),
            (11_010, (7, 1)),
            (11_020, (7, 2)),
            (11_030, (7, 3)),
            (11_040, (7, 4)),
            (11_050, (7, 5)),
            (11_060, (7, 6)),
            (11_070, (7, 7)),
            (11_080, (7, 8)),
            (12_000, (8, 0)),
            (12_010, (8, 1)),
            (12_020, (8, 2)),
            (12_030, (8, 3)),
            (12_040, (8, 4)),
            (12_050, (8, 5)),
            (12_070, (8, 6)),
            (12_080, (8, 7)),
            (12_090, (8, 8)),
        ];
        if self.driver_version >= 13_000 {
            return (9, 0);
        }
        RELEASES
            .iter()
            .rev()
            .find(|(driver, _)| *driver <= self.driver_version)
            .map_or((5, 0), |(_, ptx)| *ptx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> Result<Config, BadVariable> {
        Config::read(|asked| (asked == name).then(|| value.to_owned()))
    }

    #[test]
    fn driver_version_decides_the_newest_ptx() {
        // CUDA 12.0 added PTX 8.0, and 11.4 added 7.4. CUDA 12.6 has 8.5 as 12.5 does.
        for (driver, ptx) in [
            ("12000", (8, 0)),
            ("11040", (7, 4)),
            ("12060", (8, 5)),
            ("13000", (9, 0)),
        ] {
            let config = with("LION_EMULATED_DRIVER_VERSION", driver)
                .ok()
                .expect("a number");
            assert_eq!(config.newest_ptx(), ptx, "driver {driver}");
        }
    }

    #[test]
    fn bad_values_name_the_variable() {
        for (name, value) in [
            ("LION_EMULATED_DEVICES", "many"),
            ("LION_EMULATED_COMPUTE_CAPABILITY", "9"),
            ("LION_EMULATED_STREAM_ORDER", "latest"),
            ("LION_EMULATED_STREAM_ORDER", "random:first"),
            ("LION_EMULATED_FREE", "never"),
            ("LION_EMULATED_REGISTERS", "/nowhere/registers.txt"),
        ] {
            let error = with(name, value)
                .err()
                .expect("an invalid value")
                .to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn stream_order_takes_a_seed() {
        let order = |value| {
            let config = with("LION_EMULATED_STREAM_ORDER", value);
            config.ok().expect("an order").stream_order
        };
        assert_eq!(order("oldest"), StreamOrder::Oldest);
        assert_eq!(order("random:7"), StreamOrder::Random(7));
        assert!(matches!(order("random"), StreamOrder::Random(_)));
    }

    #[test]
    fn register_table_has_a_line_per_kernel() {
        let table = Registers::parse("# a comment\n\nlion8 80\nnorm  64\n").expect("a table");
        assert_eq!(
            ["lion8", "norm", "limit"].map(|name| table.of(name)),
            [80, 64, 0]
        );
        for bad in ["lion8", "lion8 many", "lion8 0", "lion8 256"] {
            assert_eq!(Registers::parse(bad), None, "{bad}");
        }
        let table = Registers::parse(include_str!("../../registers-sm90.txt"));
        assert_eq!(table.expect("a table").of("lion8_f32_f32_options"), 80);
    }
}
