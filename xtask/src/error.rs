//! From an error to one line on standard error and an exit status.
//!
//! | status | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | a fault of the program |
//! | 2 | a mistake that the user can mend: the line says what, where and what to do |
//! | 130 | stopped by Ctrl-C |

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::panic::{self, PanicHookInfo};
use std::process::ExitCode;

use anyhow::Error;
use kindling_model::ModelError;
use kindling_model::checkpoint::CheckpointError;
use kindling_tensor_backend::DeviceError;

/// The status after a mistake of the user.
pub(crate) const MISTAKE: u8 = 2;
/// The status after Ctrl-C, as shells have it.
pub(crate) const INTERRUPTED: u8 = 130;

/// A mistake that the user can mend.
#[derive(Debug)]
pub(crate) struct UserError(String);

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for UserError {}

/// A mistake of the user: `message` says what, where and what to do.
pub(crate) fn user(message: impl fmt::Display) -> Error {
    UserError(message.to_string()).into()
}

/// Marks an error as a mistake of the user.
pub(crate) trait OrUser<T> {
    /// The error with the whole chain of its causes as the message of a [`UserError`].
    fn or_user(self) -> anyhow::Result<T>;
}

impl<T, E: Into<Error>> OrUser<T> for Result<T, E> {
    fn or_user(self) -> anyhow::Result<T> {
        self.map_err(|error| user(one_line(&error.into())))
    }
}

/// Prints `error` and says how the process ends.
pub(crate) fn exit(error: &Error) -> ExitCode {
    if error.chain().any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let line = one_line(error);
    if error.chain().any(is_cancelled) {
        // What was added on the way tells how to go on; the cause itself is no news to who pressed the keys.
        eprintln!("{}", line.trim_end_matches(": cancelled").replace("cancelled", "stopped"));
        ExitCode::from(INTERRUPTED)
    } else if error.chain().any(is_users) {
        eprintln!("error: {line}");
        ExitCode::from(MISTAKE)
    } else {
        eprintln!("internal error: {line}");
        ExitCode::FAILURE
    }
}

/// Runs `main`; a panic anywhere becomes one line and status 1.
pub(crate) fn guard(main: impl FnOnce() -> anyhow::Result<()> + panic::UnwindSafe) -> ExitCode {
    panic::set_hook(Box::new(on_panic));
    match panic::catch_unwind(main) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => exit(&error),
        Err(_) => ExitCode::FAILURE,
    }
}

fn on_panic(info: &PanicHookInfo<'_>) {
    let message = flatten(info.payload_as_str().unwrap_or("the program stopped unexpectedly"));
    let place = info.location().map(|place| format!(" ({place})")).unwrap_or_default();
    eprintln!("internal error: {message}{place}; this is a bug: run again with RUST_BACKTRACE=1 and report it");
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        eprintln!("{}", std::backtrace::Backtrace::force_capture());
    }
}

/// The chain of causes in one line. A cause that its effect already quotes is not repeated.
fn one_line(error: &Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    flatten(&line)
}

fn flatten(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_broken_pipe(cause: &(dyn StdError + 'static)) -> bool {
    cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn is_cancelled(cause: &(dyn StdError + 'static)) -> bool {
    matches!(core_error(cause), Some(kindling_core::Error::Cancelled))
}

/// The core's error in `cause`. The model's error wraps it transparently, so that the chain does not show it.
fn core_error<'a>(cause: &'a (dyn StdError + 'static)) -> Option<&'a kindling_core::Error> {
    match cause.downcast_ref() {
        Some(ModelError::Core(error)) => Some(error),
        _ => cause.downcast_ref(),
    }
}

/// Whether a library's error means that the user can do something about it.
fn is_users(cause: &(dyn StdError + 'static)) -> bool {
    use io::ErrorKind as Io;
    use kindling_core::Error as Core;

    if let Some(error) = core_error(cause) {
        return !matches!(error, Core::Shape { .. } | Core::MissingStats { .. });
    }
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return matches!(
            error.kind(),
            Io::NotFound
                | Io::PermissionDenied
                | Io::AlreadyExists
                | Io::NotADirectory
                | Io::IsADirectory
                | Io::DirectoryNotEmpty
                | Io::ReadOnlyFilesystem
                | Io::StorageFull
                | Io::QuotaExceeded
        );
    }
    // What else a model complains about is in files and arguments: no program can know better than those.
    cause.is::<UserError>() || cause.is::<ModelError>() || cause.is::<CheckpointError>() || cause.is::<DeviceError>()
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    fn status(error: Error) -> String {
        format!("{:?}", exit(&error))
    }

    fn code(status: u8) -> String {
        format!("{:?}", ExitCode::from(status))
    }

    #[test]
    fn the_status_says_whose_fault_it_was() {
        assert_eq!(status(anyhow!("index out of range")), code(1));
        assert_eq!(status(user("no such method").context("recipe.toml")), code(2));
        assert_eq!(status(kindling_core::Error::Invalid("pattern `3:2`".into()).into()), code(2));
        let shape = kindling_core::Error::Shape { what: "gram".into(), expected: vec![2], found: vec![3] };
        assert_eq!(status(shape.into()), code(1));
        assert_eq!(status(io::Error::from(io::ErrorKind::NotFound).into()), code(2));
        assert_eq!(status(io::Error::from(io::ErrorKind::TimedOut).into()), code(1));
        assert_eq!(status(Error::from(kindling_core::Error::Cancelled).context("block 3")), code(130));
        assert_eq!(status(ModelError::Input("no tokenizer.json".into()).into()), code(2));
        assert_eq!(status(ModelError::Core(kindling_core::Error::Cancelled).into()), code(130));
        let missing = kindling_core::Error::MissingStats { layer: "q".into(), needs: kindling_core::Needs::Norms };
        assert_eq!(status(ModelError::Core(missing).into()), code(1));
    }

    #[test]
    fn a_panic_ends_with_status_1() {
        let before = panic::take_hook();
        let end = guard(|| panic!("index out of range"));
        panic::set_hook(before);
        assert_eq!(format!("{end:?}"), code(1));
        assert_eq!(format!("{:?}", guard(|| Ok(()))), code(0));
    }

    #[test]
    fn a_reader_that_left_is_no_error() {
        assert_eq!(status(io::Error::from(io::ErrorKind::BrokenPipe).into()), code(0));
    }

    #[test]
    fn causes_are_joined_in_one_line_without_echo() {
        let error = Err::<(), _>(anyhow!("line 3:\n  expected a number")).context("config.json").unwrap_err();
        assert_eq!(one_line(&error), "config.json: line 3: expected a number");
        let echo = Err::<(), _>(anyhow!("denied")).context("cannot read: denied").unwrap_err();
        assert_eq!(one_line(&echo), "cannot read: denied");
        let marked = Err::<(), _>(anyhow!("denied")).context("a.txt").or_user().unwrap_err();
        assert_eq!(one_line(&marked), "a.txt: denied");
        assert_eq!(status(marked), code(2));
    }
}
