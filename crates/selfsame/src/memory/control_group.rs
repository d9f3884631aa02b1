//! What the control groups of Linux let this process take of memory: those of containers, Slurm,
//! systemd.

use std::path::Path;

/// The tightest limit in bytes of the groups that this process is in; `None` where none has one.
pub(super) fn limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    tightest(&groups, Path::new("/sys/fs/cgroup"))
}

/// `groups` are lines of `/proc/self/cgroup`, `root` is where groups are mounted.
fn tightest(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        // cgroups(7): "hierarchy:controllers:path", of version 2 "0::path".
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let is_memory = controllers.split(',').any(|name| name == "memory");
        let (mount, file) = match (is_memory, controllers) {
            (true, _) => (root.join("memory"), "memory.limit_in_bytes"),
            (false, "") => (root.to_owned(), "memory.max"),
            _ => return None,
        };
        // A group is held to what those above it may take. A container sees its own as the root,
        // though its path is that of the host.
        let path = Path::new(path.trim_start_matches('/'));
        let files = path.ancestors().map(|group| mount.join(group).join(file));
        // "max", where there is no limit, is no number.
        let numbers = files.filter_map(|file| {
            let text = std::fs::read_to_string(file).ok()?;
            text.trim().parse().ok()
        });
        numbers.min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_above_a_process_counts() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let group = |path: &str, file: &str, text: &str| {
            std::fs::create_dir_all(root.join(path)).unwrap();
            std::fs::write(root.join(path).join(file), text).unwrap();
        };
        group("slurm", "memory.max", "4000\n");
        group("slurm/job", "memory.max", "3000\n");
        group("slurm/job/step", "memory.max", "max\n");
        let found = |groups: &str| tightest(groups, root);
        assert_eq!(found("0::/slurm/job/step\n"), Some(3000));
        assert_eq!(found("0::/slurm\n"), Some(4000));
        assert_eq!(found("0::/elsewhere\n"), None);

        let file = "memory.limit_in_bytes";
        group("memory", file, "9000\n");
        group("memory/docker/1", file, "9223372036854771712\n");
        let lines = "5:cpu,cpuacct:/x\n4:memory:/docker/1\n0::/\n";
        assert_eq!(found(lines), Some(9000));
        // The path of a container's host.
        assert_eq!(found("4:hugetlb,memory:/host/7\n"), Some(9000));
        assert_eq!(found("nonsense"), None);
    }
}
