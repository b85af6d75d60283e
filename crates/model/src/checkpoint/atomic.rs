//! Files that are either there completely or not at all, whatever happens while they are written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::error::{CheckpointError, Result};

/// Writes `bytes` to `path`; an existing file is replaced in one step.
///
/// # Errors
/// The file cannot be written. `path` is then unchanged and nothing is left beside it.
pub fn atomic_write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    atomic_write_with(path.as_ref(), |file| file.write_all(bytes))
}

/// [`atomic_write`] for content that is written piece by piece.
///
/// The content goes to a temporary file in the same folder, is brought to the disk, and takes the final name last.
/// The temporary name depends only on `path`: a process that was killed leaves one file, which the next attempt
/// overwrites.
///
/// # Errors
/// As [`atomic_write`], and any error of `write`.
pub fn atomic_write_with(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let fail = |source| CheckpointError::io("write", path, source);
    let name = path.file_name().ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".tmp");
    let temporary = path.with_file_name(hidden);

    let written = File::create(&temporary)
        .and_then(|mut file| write(&mut file).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(source) = written {
        // The first error is the one to report; a leftover is harmless.
        let _ = fs::remove_file(&temporary);
        return Err(fail(source));
    }
    sync_folder(path.parent().unwrap_or(Path::new("."))).map_err(fail)
}

/// Makes a rename durable. Only Unix lets a program open a folder to do so.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        atomic_write(&path, b"one").unwrap();
        atomic_write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_leaves_the_old_file_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        atomic_write(&path, b"old").unwrap();
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let error = atomic_write_with(&path, |file| {
                file.write_all(b"half")?;
                Err(kind.into())
            })
            .unwrap_err();
            assert!(matches!(error, CheckpointError::DiskFull { .. }));
            let text = error.to_string();
            assert!(text.starts_with(&format!("no space left to write `{}` (", path.display())), "{text}");
            assert!(text.ends_with("run the same command again; finished shards are kept"), "{text}");
        }
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn other_errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing").join("f");
        let text = atomic_write(&path, b"").unwrap_err().to_string();
        assert!(text.starts_with(&format!("cannot write `{}`: ", path.display())), "{text}");
        assert!(atomic_write("/", b"").unwrap_err().to_string().starts_with("cannot write `/`: "));
    }
}
