//! The limits on the memory of the process, read from files of Linux.

use lion_core::{MemoryLimit, MemoryLimitKind};
use std::fs;
use std::path::{Component, Path};

/// Returns the smallest limit found in the files under `root`, which is `/` except in tests.
/// Returns `None` if there are no such files.
pub(crate) fn smallest_limit(root: &Path) -> Option<MemoryLimit> {
    let limits = [
        control_group(root),
        resource(root, "Max address space", MemoryLimitKind::AddressSpace),
        resource(root, "Max data size", MemoryLimitKind::DataSegment),
        machine(root),
    ];
    limits.into_iter().flatten().min_by_key(|limit| limit.bytes)
}

/// Reads a file that contains one number. Returns `None` for a word, such as `max` for no limit.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Returns the smallest limit of the control group of the process and of its ancestors, in version
/// 1 and 2 of the interface.
fn control_group(root: &Path) -> Option<MemoryLimit> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounted = root.join("sys/fs/cgroup");
    let limits = groups.lines().filter_map(|line| {
        // The format is `0::/path` in version 2, and `4:memory:/path` in version 1.
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (folders, file) = if controllers.is_empty() {
            let folders = vec![mounted.clone(), mounted.join("unified")];
            (folders, "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (vec![mounted.join("memory")], "memory.limit_in_bytes")
        } else {
            return None;
        };
        let limits = folders
            .iter()
            .filter_map(|folder| smallest_above(folder, path, file));
        limits.min()
    });
    let bytes = limits.min()?;
    Some(MemoryLimit::new(MemoryLimitKind::ControlGroup, bytes))
}

/// Returns the smallest number in the files of this name in a folder and along a path below it. In
/// a container the path may be relative to the host, and then only the folder itself contains the
/// file.
fn smallest_above(folder: &Path, path: &str, file: &str) -> Option<u64> {
    let mut folder = folder.to_owned();
    let mut smallest = number(&folder.join(file));
    for name in Path::new(path).components() {
        let Component::Normal(name) = name else {
            continue;
        };
        folder.push(name);
        if let Some(limit) = number(&folder.join(file)) {
            smallest = Some(smallest.map_or(limit, |smallest| smallest.min(limit)));
        }
    }
    smallest
}

/// Returns the soft limit of a resource, as set by `ulimit`.
fn resource(root: &Path, name: &str, kind: MemoryLimitKind) -> Option<MemoryLimit> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let bytes = line.split_whitespace().next()?.parse().ok()?;
    Some(MemoryLimit::new(kind, bytes))
}

/// Returns the memory of the machine.
fn machine(root: &Path) -> Option<MemoryLimit> {
    let memory = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    let bytes = kib.checked_mul(1024)?;
    Some(MemoryLimit::new(MemoryLimitKind::Machine, bytes))
}

#[cfg(test)]
#[cfg(all(target_os = "linux", not(miri)))]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// Creates a folder with files of `/proc` and `/sys`.
    fn root(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn limit(files: &[(&str, &str)]) -> Option<(MemoryLimitKind, u64)> {
        let root = root(files);
        let limit = smallest_limit(root.path());
        limit.map(|limit| (limit.kind, limit.bytes))
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:       24582144 kB\nMemFree:          123456 kB\n",
    );

    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max data size             unlimited            unlimited            bytes     \n\
         Max address space         1073741824           unlimited            bytes     \n";

    #[test]
    fn without_files_no_limit_is_known() {
        assert_eq!(limit(&[]), None);
    }

    #[test]
    fn the_smallest_limit_counts() {
        let machine = (MemoryLimitKind::Machine, 24_582_144 * 1024);
        assert_eq!(limit(&[MEMINFO]), Some(machine));
        let limits = ("proc/self/limits", LIMITS);
        let address_space = (MemoryLimitKind::AddressSpace, 1 << 30);
        assert_eq!(limit(&[MEMINFO, limits]), Some(address_space));
        let data = LIMITS.replacen("unlimited ", "4096      ", 1);
        let data = limit(&[MEMINFO, ("proc/self/limits", &data)]);
        assert_eq!(data, Some((MemoryLimitKind::DataSegment, 4096)));
    }

    #[test]
    fn a_control_group_of_version_2_is_held_to_those_around_it() {
        let group = ("proc/self/cgroup", "0::/user.slice/run\n");
        let group_limit = |inner: &str, outer: &str| {
            limit(&[
                MEMINFO,
                group,
                ("sys/fs/cgroup/user.slice/run/memory.max", inner),
                ("sys/fs/cgroup/user.slice/memory.max", outer),
            ])
        };
        let of = |bytes| Some((MemoryLimitKind::ControlGroup, bytes));
        assert_eq!(group_limit("104857600\n", "max\n"), of(100 << 20));
        assert_eq!(group_limit("max\n", "104857600\n"), of(100 << 20));
        assert_eq!(group_limit("4096\n", "104857600\n"), of(4096));
        let machine = Some((MemoryLimitKind::Machine, 24_582_144 * 1024));
        assert_eq!(group_limit("max\n", "max\n"), machine);
        // In a container, its group is the root of the hierarchy.
        let container = [("sys/fs/cgroup/memory.max", "104857600\n"), group];
        assert_eq!(limit(&container), of(100 << 20));
        let outside = [container[0], ("proc/self/cgroup", "0::/../../other\n")];
        assert_eq!(limit(&outside), of(100 << 20));
    }

    #[test]
    fn a_control_group_of_version_1_is_found_too() {
        let group = (
            "proc/self/cgroup",
            "4:cpu,memory:/run/1\n1:name=systemd:/\n0::/\n",
        );
        let found = limit(&[
            group,
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            (
                "sys/fs/cgroup/memory/run/1/memory.limit_in_bytes",
                "104857600\n",
            ),
            ("sys/fs/cgroup/unified/memory.max", "max\n"),
        ]);
        assert_eq!(found, Some((MemoryLimitKind::ControlGroup, 100 << 20)));
    }
}
