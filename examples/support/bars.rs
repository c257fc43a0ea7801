//! Progress bars on stderr. If stderr is not a terminal, nothing is drawn.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// Lines at the bottom of the terminal that are drawn again and again in the same place.
#[derive(Debug)]
pub(crate) struct Bars {
    is_terminal: bool,
    /// Number of lines that are drawn.
    lines: usize,
    start: Instant,
}

impl Bars {
    pub(crate) fn new() -> Self {
        Bars {
            is_terminal: stderr().is_terminal(),
            lines: 0,
            start: Instant::now(),
        }
    }

    /// Replaces the lines.
    pub(crate) fn draw(&mut self, lines: &[String]) {
        if !self.is_terminal {
            return;
        }
        let mut text = String::new();
        if self.lines > 0 {
            text += &format!("\x1b[{}A", self.lines);
        }
        // From here to the end of the screen, erase; and do not wrap lines that are too long.
        text += "\r\x1b[J\x1b[?7l";
        for line in lines {
            text += line;
            text += "\n";
        }
        text += "\x1b[?7h";
        self.lines = lines.len();
        // Without the terminal, nobody sees the bars.
        let _ = stderr().lock().write_all(text.as_bytes());
    }

    /// Erases the lines.
    pub(crate) fn clear(&mut self) {
        self.draw(&[]);
    }

    /// Returns the estimated time until `all` steps are done, if `done` of them are.
    pub(crate) fn time_left(&self, done: u32, all: u32) -> String {
        let left = self.start.elapsed().as_secs_f64() * f64::from(all.saturating_sub(done));
        seconds(Duration::from_secs_f64(left / f64::from(done.max(1))))
    }
}

fn seconds(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m {}s", s / 60, s % 60),
        s => format!("{}h {}m", s / 3600, s / 60 % 60),
    }
}

/// Returns a bar of 40 characters that shows `done` of `all`.
pub(crate) fn bar(done: u64, all: u64) -> String {
    const WIDTH: usize = 40;
    let share = done.min(all) as f64 / all.max(1) as f64;
    let filled = (share * WIDTH as f64) as usize;
    let head = if filled < WIDTH { ">" } else { "" };
    format!("[{:WIDTH$}]", "=".repeat(filled) + head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_one_width() {
        assert_eq!(bar(0, 4), format!("[>{}]", " ".repeat(39)));
        assert_eq!(
            bar(1, 4),
            format!("[{}>{}]", "=".repeat(10), " ".repeat(29))
        );
        for (done, all) in [(4, 4), (5, 4), (0, 0), (u64::MAX, u64::MAX)] {
            assert_eq!(bar(done, all).len(), 42, "{done} of {all}");
        }
    }

    #[test]
    fn times_have_two_units_at_most() {
        let texts = [59, 61, 7322].map(|s| seconds(Duration::from_secs(s)));
        assert_eq!(texts, ["59s", "1m 1s", "2h 2m"]);
    }
}
