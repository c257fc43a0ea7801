//! The memory that the system lets this process have.

use lion_core::MemoryLimit;
use std::fs;
use std::path::{Path, PathBuf};

/// The smallest of the limits that can be found: control groups (versions 1 and 2), `rlimits`, and the
/// memory of the machine.
///
/// `root` is the root of the file system, another folder in tests. `rlimits` are names and bytes.
pub(crate) fn smallest(root: &Path, rlimits: &[(&str, u64)]) -> Option<MemoryLimit> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut limits: Vec<MemoryLimit> = groups
        .lines()
        .filter_map(|line| group_limit(root, line))
        .collect();
    for &(name, bytes) in rlimits {
        limits.push(MemoryLimit::new(name, bytes));
    }
    if let Some(bytes) = machine_memory(root) {
        limits.push(MemoryLimit::new("the memory of the machine", bytes));
    }
    limits.into_iter().min_by_key(|limit| limit.bytes)
}

/// The smallest limit of a control group and of those around it, from a line of `/proc/self/cgroup`:
/// `0::/path` in version 2, `number:controllers:/path` in version 1.
fn group_limit(root: &Path, line: &str) -> Option<MemoryLimit> {
    let (_, line) = line.split_once(':')?;
    let (controllers, path) = line.split_once(':')?;
    let (mount, file) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|name| name == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return None,
    };
    let mount = root.join(mount);
    let mut group = PathBuf::from(path.trim_start_matches('/'));
    let mut smallest: Option<MemoryLimit> = None;
    loop {
        let text = fs::read_to_string(mount.join(&group).join(file));
        // "max" stands for no limit, and so does a huge number in version 1.
        let bytes = text.ok().and_then(|text| text.trim().parse::<u64>().ok());
        if let Some(bytes) = bytes
            && smallest.as_ref().is_none_or(|limit| bytes < limit.bytes)
        {
            let source = format!("the control group /{}", group.display());
            smallest = Some(MemoryLimit::new(source, bytes));
        }
        if !group.pop() {
            return smallest;
        }
    }
}

/// `MemTotal` of `/proc/meminfo`.
fn machine_memory(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_smallest_limit_of_a_group_and_those_around_it_is_found() {
        let root = machine(&[
            ("proc/self/cgroup", "0::/user/run/trainer\n"),
            (
                "proc/meminfo",
                "MemTotal:       1048576 kB\nMemFree: 1 kB\n",
            ),
            ("sys/fs/cgroup/user/run/trainer/memory.max", "max\n"),
            ("sys/fs/cgroup/user/run/memory.max", "104857600\n"),
            ("sys/fs/cgroup/user/memory.max", "209715200\n"),
        ]);
        let limit = smallest(root.path(), &[("RLIMIT_DATA", 1 << 40)]).unwrap();
        assert_eq!(
            limit,
            MemoryLimit::new("the control group /user/run", 100 << 20)
        );
        let limit = smallest(root.path(), &[("RLIMIT_AS", 1 << 20)]).unwrap();
        assert_eq!(limit, MemoryLimit::new("RLIMIT_AS", 1 << 20));
    }

    #[test]
    fn groups_of_version_1_are_read_where_they_limit_memory() {
        let root = machine(&[
            (
                "proc/self/cgroup",
                "12:cpu,cpuacct:/a\n11:memory:/docker/b\n0::/\n",
            ),
            (
                "sys/fs/cgroup/memory/docker/b/memory.limit_in_bytes",
                "5000\n",
            ),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/a/memory.max", "1\n"),
        ]);
        let limit = smallest(root.path(), &[]).unwrap();
        assert_eq!(limit, MemoryLimit::new("the control group /docker/b", 5000));
    }

    #[test]
    fn a_machine_without_groups_has_its_memory_as_the_limit() {
        let root = machine(&[("proc/meminfo", "MemTotal: 2 kB\n")]);
        let limit = smallest(root.path(), &[]).unwrap();
        assert_eq!(limit, MemoryLimit::new("the memory of the machine", 2048));
        assert_eq!(smallest(machine(&[]).path(), &[]), None);
    }
}
