//! `cargo xtask verify --gpu`: runs all GPU tests, each part in its own process, and writes a
//! report to a folder.

use anyhow::{Context, Result, bail};
use lion::cuda::{DeviceInfo, cust, devices, is_emulated};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The options of `verify --gpu`.
pub(crate) struct Options<'a> {
    /// The folder of the report.
    pub(crate) out: &'a Path,
    /// The folder with the test programs, if they are already built.
    pub(crate) prebuilt: Option<&'a Path>,
    /// The folder with the trajectories.
    pub(crate) vectors: &'a Path,
    pub(crate) quick: bool,
}

/// Time limit of a part. A GPU can hang, so a part that exceeds the limit is killed.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// The tools of compute-sanitizer.
const TOOLS: [&str; 4] = ["memcheck", "racecheck", "synccheck", "initcheck"];

/// The result of a part.
enum Outcome {
    Passed,
    Failed(String),
    /// The part was not run, for this reason.
    Skipped(String),
}

/// A part that has been run or skipped.
struct Part {
    name: String,
    outcome: Outcome,
    took: Duration,
    /// Its output, for the report.
    text: String,
}

/// Runs all parts and writes the report. Returns `true` if none failed.
pub(crate) fn run(options: &Options<'_>) -> Result<bool> {
    let found = devices().map_err(|error| {
        anyhow::anyhow!("no GPU, nothing was run: {error} (LION_CUDA_DRIVER can name a driver)")
    })?;
    let Some(device) = found.first() else {
        bail!("no GPU, nothing was run: the driver lists no device");
    };
    let out = options.out;
    fs::create_dir_all(out).with_context(|| format!("--out {}", out.display()))?;
    let head = head(device, found.len())?;
    print!("{head}");
    let mut runner = Runner {
        out,
        parts: Vec::new(),
    };
    runner.all(options)?;
    let report = report(&head, &runner.parts);
    let path = out.join("report.txt");
    fs::write(&path, report).with_context(|| path.display().to_string())?;
    println!("{}", counts(&runner.parts));
    println!("report: {}", path.display());
    let failed = |part: &Part| matches!(part.outcome, Outcome::Failed(_));
    Ok(!runner.parts.iter().any(failed))
}

/// Returns the head of the report: the device and the CUDA driver.
fn head(device: &DeviceInfo, devices: usize) -> Result<String> {
    let version = cust::CudaApiVersion::get()?;
    let named = std::env::var("LION_CUDA_DRIVER").unwrap_or_default();
    let library = if named.is_empty() {
        "the system's"
    } else {
        &named
    };
    let (major, minor) = device.capability;
    let mut head = format!(
        "device   {}, compute capability {major}.{minor}, {} MiB; device 0 of {devices}\n\
         driver   CUDA {}.{}, {library}\n",
        device.name,
        device.memory >> 20,
        version.major(),
        version.minor(),
    );
    if let Ok(text) = fs::read_to_string("/proc/driver/nvidia/version")
        && let Some(line) = text.lines().next()
    {
        head += &format!("         {line}\n");
    }
    if is_emulated() {
        head += "         The driver is emulated: nothing here is a result of a GPU, and times mean nothing.\n";
    }
    let revision = Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::null())
        .output();
    let revision = revision.ok().filter(|output| output.status.success());
    let revision = revision.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    head += &format!(
        "lion     {} {}\n",
        env!("CARGO_PKG_VERSION"),
        revision.unwrap_or_default().trim()
    );
    head += &format!(
        "host     {} {}\n",
        std::env::consts::OS,
        std::env::consts::ARCH
    );
    Ok(head)
}

/// Runs the parts in order.
struct Runner<'a> {
    out: &'a Path,
    parts: Vec<Part>,
}

impl Runner<'_> {
    fn all(&mut self, options: &Options<'_>) -> Result<()> {
        let xtask = std::env::current_exe().context("the path of this program")?;
        let (whole, paged) = if is_emulated() {
            ("cuda-emulated", "cuda-emulated-paged")
        } else {
            ("cuda", "cuda-paged")
        };
        let no_paging = no_paging();
        for (name, program) in self.test_programs(options)? {
            if let Some(reason) = no_paging.as_ref().filter(|_| name.contains("paging")) {
                self.skip(&name, reason.clone());
                continue;
            }
            // Tests that run the other tests again would do so on the emulated driver.
            let mut command = Command::new(program);
            command.args(["--test-threads=1", "--nocapture", "--skip", "again_"]);
            self.run(&name, command);
        }
        for (suffix, backend) in [("", whole), ("-paged", paged)] {
            let [matrix, replay] = ["matrix", "replay"].map(|name| format!("{name}{suffix}"));
            if let Some(reason) = no_paging.as_ref().filter(|_| backend == paged) {
                self.skip(&matrix, reason.clone());
                self.skip(&replay, reason.clone());
                continue;
            }
            let mut command = Command::new(&xtask);
            command.args(["verify", "--backend", backend]);
            command.args(options.quick.then_some("--quick"));
            self.run(&matrix, command);
            self.run(&replay, replay_command(&xtask, backend, options.vectors));
        }
        let mut command = Command::new(&xtask);
        command.args(["bench", "--isa", whole]);
        command.args(options.quick.then_some("--quick"));
        self.run("bench", command);
        self.sanitize(&xtask, whole, options);
        Ok(())
    }

    /// Returns the names and files of the CUDA test programs: those in the folder, or those that
    /// cargo builds.
    fn test_programs(&mut self, options: &Options<'_>) -> Result<Vec<(String, PathBuf)>> {
        let Some(folder) = options.prebuilt else {
            return Ok(self.build());
        };
        let named = || format!("--prebuilt {}", folder.display());
        let mut programs = Vec::new();
        for entry in fs::read_dir(folder).with_context(named)? {
            let path = entry.with_context(named)?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let suffix = path.extension().unwrap_or_default();
            if name.starts_with("cuda") && suffix == std::env::consts::EXE_EXTENSION {
                programs.push((name.into_owned(), path.clone()));
            }
        }
        if programs.is_empty() {
            bail!("{} has no test program `cuda...`", named());
        }
        programs.sort();
        Ok(programs)
    }

    /// Builds the test programs. If the build fails, the part reports it, and no programs are
    /// returned.
    fn build(&mut self) -> Vec<(String, PathBuf)> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .args([
                "test",
                "--package",
                "lion-tests",
                "--test",
                "cuda*",
                "--no-run",
            ])
            .arg("--message-format=json-render-diagnostics")
            // With the profile that this program was built with.
            .args((!cfg!(debug_assertions)).then_some("--release"))
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        let text = self.run("build", command).text.clone();
        text.lines().filter_map(test_program).collect()
    }

    /// Repeats the replay under each tool of compute-sanitizer.
    fn sanitize(&mut self, xtask: &Path, backend: &str, options: &Options<'_>) {
        let found = if is_emulated() {
            Err("compute-sanitizer needs NVIDIA's driver, and this driver is emulated".to_owned())
        } else {
            sanitizer()
        };
        for tool in TOOLS {
            let name = format!("sanitizer-{tool}");
            match &found {
                Err(reason) => self.skip(&name, reason.clone()),
                Ok(sanitizer) => {
                    let replay = replay_command(xtask, backend, options.vectors);
                    let mut command = Command::new(sanitizer);
                    command
                        .args(["--tool", tool, "--error-exitcode", "9"])
                        .arg(replay.get_program())
                        .args(replay.get_args());
                    self.run(&name, command);
                }
            }
        }
    }

    fn skip(&mut self, name: &str, reason: String) {
        self.done(Part {
            name: name.to_owned(),
            outcome: Outcome::Skipped(reason),
            took: Duration::ZERO,
            text: String::new(),
        });
    }

    /// Runs a command until it ends or exceeds the limit. Its output is stored in the folder, in a
    /// file named after the part.
    fn run(&mut self, name: &str, mut command: Command) -> &Part {
        let path = self.out.join(format!("{name}.txt"));
        let start = Instant::now();
        let outcome = match into_file(&mut command, &path) {
            Ok(Some(status)) if status.success() => Outcome::Passed,
            Ok(Some(status)) => Outcome::Failed(status.to_string()),
            Ok(None) => Outcome::Failed(format!("killed after {} s", LIMIT.as_secs())),
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        let text = fs::read(&path).unwrap_or_default();
        self.done(Part {
            name: name.to_owned(),
            outcome,
            took: start.elapsed(),
            text: String::from_utf8_lossy(&text).into_owned(),
        })
    }

    fn done(&mut self, part: Part) -> &Part {
        println!("{}", part.row());
        self.parts.push(part);
        &self.parts[self.parts.len() - 1]
    }
}

impl Part {
    fn row(&self) -> String {
        let (name, seconds) = (&self.name, self.took.as_secs_f64());
        match &self.outcome {
            Outcome::Passed => format!("{name:<24} passed   {seconds:>8.1} s"),
            Outcome::Failed(why) => format!("{name:<24} FAILED   {seconds:>8.1} s  {why}"),
            Outcome::Skipped(why) => format!("{name:<24} SKIPPED              {why}"),
        }
    }
}

fn replay_command(xtask: &Path, backend: &str, vectors: &Path) -> Command {
    let mut command = Command::new(xtask);
    command
        .args(["verify", "--backend", backend, "--replay"])
        .arg(vectors);
    command
}

/// Runs a command with both of its outputs redirected to a file. Returns `None` if it was killed.
fn into_file(command: &mut Command, path: &Path) -> Result<Option<ExitStatus>> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let both = file.try_clone()?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(both)
        .spawn()
        .with_context(|| format!("{program} does not start"))?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the name and file of a test program from a line of cargo's output.
fn test_program(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let executable = message["executable"].as_str()?;
    let name = message["target"]["name"].as_str()?;
    Some((name.to_owned(), executable.into()))
}

/// Returns the reason why states cannot be paged on the device, or `None` if they can.
fn no_paging() -> Option<String> {
    use cust::device::{Device, DeviceAttribute};
    let concurrent = Device::get_device(0)
        .and_then(|device| device.get_attribute(DeviceAttribute::ConcurrentManagedAccess));
    match concurrent {
        Ok(0) => Some("the device cannot prefetch unified memory".to_owned()),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// Returns the path of compute-sanitizer, if it is installed.
fn sanitizer() -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/local/cuda/bin", "/opt/cuda/bin"].map(PathBuf::from));
    let name = format!("compute-sanitizer{}", std::env::consts::EXE_SUFFIX);
    let mut files = folders.iter().map(|folder| folder.join(&name));
    files
        .find(|file| file.is_file())
        .ok_or_else(|| "compute-sanitizer is neither in PATH nor in /usr/local/cuda/bin".to_owned())
}

fn counts(parts: &[Part]) -> String {
    let count = |is: fn(&Outcome) -> bool| parts.iter().filter(|part| is(&part.outcome)).count();
    format!(
        "{} passed, {} failed, {} skipped",
        count(|outcome| matches!(outcome, Outcome::Passed)),
        count(|outcome| matches!(outcome, Outcome::Failed(_))),
        count(|outcome| matches!(outcome, Outcome::Skipped(_))),
    )
}

/// Returns the report: the result of each part, what it skipped, the end of the output of failed
/// parts, and the table of the benchmark.
fn report(head: &str, parts: &[Part]) -> String {
    const LAST: usize = 30;
    let mut text = format!("{head}\n");
    // Writing to a string does not fail.
    for part in parts {
        let _ = writeln!(text, "{}", part.row());
    }
    let _ = writeln!(text, "{}", counts(parts));
    let _ = writeln!(
        text,
        "What a part printed is in the file NAME.txt beside this one."
    );
    for part in parts {
        let mut left_out: Vec<&str> = Vec::new();
        for (_, reason) in part
            .text
            .lines()
            .filter_map(|line| line.split_once("SKIPPED"))
        {
            let reason = reason.trim_start_matches(':').trim();
            if !left_out.contains(&reason) {
                left_out.push(reason);
            }
        }
        for reason in left_out {
            let _ = writeln!(text, "left out by {}: {reason}", part.name);
        }
    }
    for part in parts {
        let lines: Vec<&str> = part.text.lines().collect();
        if matches!(part.outcome, Outcome::Failed(_)) {
            let end = &lines[lines.len().saturating_sub(LAST)..];
            let _ = writeln!(text, "\nthe end of {}.txt:\n{}", part.name, end.join("\n"));
        } else if part.name == "bench" {
            let _ = writeln!(text, "\nbench:\n{}", part.text.trim());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_lists_failed_and_skipped_tests() {
        let part = |name: &str, outcome, text: &str| Part {
            name: name.to_owned(),
            outcome,
            took: Duration::from_millis(1500),
            text: text.to_owned(),
        };
        let parts = [
            part(
                "cuda",
                Outcome::Passed,
                "test a ... SKIPPED a: no counters\nSKIPPED a: no counters\nok",
            ),
            part(
                "matrix",
                Outcome::Failed("exit status: 1".into()),
                "1 WRONG",
            ),
            part("sanitizer", Outcome::Skipped("not there".into()), ""),
        ];
        let text = report("device   of a test\n", &parts);
        for wanted in [
            "device   of a test\n",
            "cuda                     passed        1.5 s\n",
            "matrix                   FAILED        1.5 s  exit status: 1\n",
            "sanitizer                SKIPPED              not there\n",
            "1 passed, 1 failed, 1 skipped\n",
            "left out by cuda: a: no counters\n\n",
            "the end of matrix.txt:\n1 WRONG\n",
        ] {
            assert!(text.contains(wanted), "{wanted} in:\n{text}");
        }
    }

    #[test]
    fn test_programs_are_those_with_a_file() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"name":"cuda"},"executable":"/t/cuda-1"}"#;
        let wanted = ("cuda".to_owned(), PathBuf::from("/t/cuda-1"));
        assert_eq!(test_program(line), Some(wanted));
        let library =
            r#"{"reason":"compiler-artifact","target":{"name":"lion"},"executable":null}"#;
        assert_eq!(test_program(library), None);
        assert_eq!(test_program("   Compiling lion"), None);
    }
}
