//! Command-line options of an example: `--name VALUE` or `--name=VALUE`, and `--help`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

/// An option: its name, the placeholder of its value, and its description.
pub(crate) type Spec = (&'static str, &'static str, &'static str);

/// The values that were given for the options of a program.
#[derive(Debug)]
pub(crate) struct Values {
    specs: &'static [Spec],
    /// In the order of `specs`.
    given: Vec<Option<OsString>>,
}

/// Reads the options of this process, converts them by `convert`, and calls `run`. Prints the error of any of
/// these to stderr. Returns the exit code.
pub(crate) fn main<T>(
    program: &str,
    about: &str,
    specs: &'static [Spec],
    convert: impl FnOnce(&Values) -> Result<T, String>,
    run: impl FnOnce(&T) -> anyhow::Result<()>,
) -> ExitCode {
    match read(program, about, specs, convert).map(|options| run(&options)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
        Err(code) => code,
    }
}

/// Reads the options. After `--help` or a wrong option, prints a message and returns the exit code.
fn read<T>(
    program: &str,
    about: &str,
    specs: &'static [Spec],
    convert: impl FnOnce(&Values) -> Result<T, String>,
) -> Result<T, ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.iter().any(|arg| arg == "--help" || arg == "-h") {
        print!("{about}\n\n{}", help(program, specs));
        return Err(ExitCode::SUCCESS);
    }
    let options = Values::parse(specs, arguments).and_then(|values| convert(&values));
    options.map_err(|error| {
        eprintln!(
            "error: {error}\n\nUsage: {program} [OPTIONS]\n\nFor more information, try '--help'."
        );
        ExitCode::from(2)
    })
}

fn help(program: &str, specs: &[Spec]) -> String {
    let left = |(name, value, _): &Spec| format!("--{name} <{value}>");
    let width = specs.iter().map(|spec| left(spec).len()).max();
    let width = width.unwrap_or(0);
    let mut text = format!("Usage: {program} [OPTIONS]\n\nOptions:\n");
    for spec in specs {
        text += &format!("      {:width$}  {}\n", left(spec), spec.2);
    }
    text + &format!("  -h, {:width$}  Print help\n", "--help")
}

impl Values {
    pub(crate) fn parse(
        specs: &'static [Spec],
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, String> {
        let mut given = vec![None; specs.len()];
        let mut arguments = arguments.into_iter().peekable();
        while let Some(argument) = arguments.next() {
            let unexpected = || format!("unexpected argument '{}' found", argument.display());
            let text = argument.to_str().and_then(|text| text.strip_prefix("--"));
            let text = text.ok_or_else(unexpected)?;
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(value.into())),
                None => (text, None),
            };
            let Some(index) = specs.iter().position(|spec| spec.0 == name) else {
                let similar = |other: &str| other.starts_with(name) || name.starts_with(other);
                let similar = specs.iter().find(|spec| similar(spec.0));
                let tip = similar
                    .filter(|_| !name.is_empty())
                    .map(|spec| format!("\n\n  tip: a similar argument exists: '--{}'", spec.0));
                return Err(unexpected() + &tip.unwrap_or_default());
            };
            let option = format!("'--{name} <{}>'", specs[index].1);
            let is_value = |next: &OsString| !next.as_encoded_bytes().starts_with(b"--");
            let value = value.or_else(|| arguments.next_if(is_value));
            let value = value
                .ok_or_else(|| format!("a value is required for {option} but none was supplied"))?;
            if given[index].replace(value).is_some() {
                return Err(format!(
                    "the argument {option} cannot be used multiple times"
                ));
            }
        }
        Ok(Values { specs, given })
    }

    fn find(&self, name: &str) -> Option<(&'static Spec, &OsString)> {
        let mut pairs = self.specs.iter().zip(&self.given);
        let (spec, value) = pairs.find(|(spec, _)| spec.0 == name)?;
        Some((spec, value.as_ref()?))
    }

    /// Returns the path that is given for an option.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.find(name).map(|(_, value)| value.into())
    }

    /// Returns the value that is given for an option, converted by `parse`.
    pub(crate) fn value<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        let Some(((name, placeholder, _), value)) = self.find(name) else {
            return Ok(None);
        };
        let text = value.to_str().ok_or_else(|| "invalid UTF-8".to_owned());
        text.and_then(parse).map(Some).map_err(|error| {
            let value = value.display();
            format!("invalid value '{value}' for '--{name} <{placeholder}>': {error}")
        })
    }
}

/// Parses a number.
pub(crate) fn number<T: FromStr<Err: ToString>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SPECS: &[Spec] = &[
        ("epochs", "EPOCHS", "Number of epochs [default: 60]"),
        ("out", "FILE", "The chart"),
    ];

    fn parse(arguments: &[&str]) -> Result<Values, String> {
        Values::parse(SPECS, arguments.iter().map(OsString::from))
    }

    #[test]
    fn values_follow_a_space_or_an_equals_sign() {
        let values = parse(&["--epochs", "-3", "--out=a=b"]).unwrap();
        assert_eq!(values.value("epochs", number::<i32>), Ok(Some(-3)));
        assert_eq!(values.path("out"), Some("a=b".into()));
        assert_eq!(parse(&[]).unwrap().path("out"), None);
        let error = values.value("epochs", number::<u32>).unwrap_err();
        let wanted = "invalid value '-3' for '--epochs <EPOCHS>': invalid digit found in string";
        assert_eq!(error, wanted);
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (arguments, wanted) in [
            (&["stray"][..], "unexpected argument 'stray' found"),
            (&["--nope=1"], "unexpected argument '--nope=1' found"),
            (&["--epoch", "1"], "a similar argument exists: '--epochs'"),
            (&["--epochs"], "a value is required for '--epochs <EPOCHS>'"),
            (
                &["--epochs", "--out", "x"],
                "a value is required for '--epochs <EPOCHS>'",
            ),
            (
                &["--out", "x", "--out", "y"],
                "the argument '--out <FILE>' cannot be used multiple times",
            ),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(wanted), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn the_help_lists_the_options_in_columns() {
        assert_eq!(
            help("digits", SPECS),
            "Usage: digits [OPTIONS]\n\nOptions:\n      \
             --epochs <EPOCHS>  Number of epochs [default: 60]\n      \
             --out <FILE>       The chart\n  \
             -h, --help             Print help\n"
        );
    }
}
