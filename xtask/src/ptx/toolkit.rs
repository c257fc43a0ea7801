//! Locates and installs NVIDIA's compiler, assembler and disassembler from PyPI. Neither a CUDA
//! toolkit nor a driver is needed.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The packages to install. NVRTC determines the PTX, and is the version of the first drivers of
/// CUDA 12. The assembler and the disassembler only report, and are newer because they must support
/// newer architectures.
const PACKAGES: [&str; 4] = [
    "nvidia-cuda-nvrtc-cu12==12.0.140",
    "nvidia-cuda-nvcc-cu12==12.9.86",
    "nvidia-cuda-cuobjdump==13.2.86",
    "nvidia-cuda-nvdisasm==13.2.86",
];

/// The paths of the tools.
pub(super) struct Toolkit {
    pub(super) nvrtc: PathBuf,
    pub(super) ptxas: PathBuf,
    pub(super) cuobjdump: PathBuf,
}

impl Toolkit {
    /// Searches a virtual environment or its site-packages folder.
    ///
    /// # Errors
    /// Names what is missing and how to install it.
    pub(super) fn find(folder: &Path) -> Result<Self> {
        let packages = site_packages(folder);
        let part = |name: &str| {
            let path = packages.join("nvidia").join(name);
            if path.is_file() {
                return Ok(path);
            }
            bail!(
                "no {} in {}; to install it:\n\n{}\nor: cargo xtask ptx --install",
                name,
                packages.display(),
                commands(folder)
            )
        };
        Ok(Toolkit {
            nvrtc: part("cuda_nvrtc/lib/libnvrtc.so.12")?,
            ptxas: part("cuda_nvcc/bin/ptxas")?,
            cuobjdump: part("cu13/bin/cuobjdump")?,
        })
    }
}

/// Returns the site-packages folder of a virtual environment, or the folder itself if it is not
/// one.
fn site_packages(folder: &Path) -> PathBuf {
    let Ok(entries) = fs::read_dir(folder.join("lib")) else {
        return folder.to_path_buf();
    };
    entries
        .flatten()
        .map(|entry| entry.path().join("site-packages"))
        .find(|path| path.is_dir())
        .unwrap_or_else(|| folder.to_path_buf())
}

/// Returns the shell commands that install the toolkit.
fn commands(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "    python3 -m venv {folder}\n    {folder}/bin/pip install {}\n",
        PACKAGES.join(" ")
    )
}

/// Installs the toolkit into a virtual environment.
///
/// # Errors
/// If Python or pip fails.
pub(super) fn install(folder: &Path) -> Result<()> {
    execute(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    execute(
        Command::new(folder.join("bin/pip"))
            .args(["install", "--quiet"])
            .args(PACKAGES),
    )?;
    Ok(())
}

/// Runs a program and returns both of its outputs.
///
/// # Errors
/// If it cannot be run or fails, with its output.
pub(super) fn execute(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{} failed ({}):\n{text}",
        command.get_program().to_string_lossy(),
        output.status
    );
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_tools_are_named_with_the_commands_that_install_them() {
        let folder = tempfile::tempdir().unwrap();
        let error = Toolkit::find(folder.path()).err().unwrap().to_string();
        assert!(error.contains("libnvrtc.so.12"), "{error}");
        assert!(
            error.contains("bin/pip install nvidia-cuda-nvrtc-cu12==12.0.140"),
            "{error}"
        );
    }

    #[test]
    fn both_folders_of_an_environment_are_understood() {
        let folder = tempfile::tempdir().unwrap();
        let packages = folder.path().join("lib/python3.11/site-packages");
        for part in [
            "cuda_nvrtc/lib/libnvrtc.so.12",
            "cuda_nvcc/bin/ptxas",
            "cu13/bin/cuobjdump",
        ] {
            let path = packages.join("nvidia").join(part);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        for given in [folder.path(), &packages] {
            let found = Toolkit::find(given).unwrap();
            assert!(found.nvrtc.starts_with(&packages));
        }
    }
}
