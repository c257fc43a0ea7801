//! Memory statistics of this process from the kernel.

use std::fs;

/// Returns the bytes in a line of `/proc/self/status`, such as `VmRSS`, or `None` if there is no
/// such line.
pub(super) fn status(name: &str) -> Option<usize> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| {
        let mut words = line.split(':');
        words.next() == Some(name)
    })?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}
