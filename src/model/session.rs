//! The only file that says `ort::`: loading the shared library, and lanes of one ONNX Runtime session each.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::environment::Environment;
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session, builder::GraphOptimizationLevel};
use ort::value::TensorRef;

use super::{Error, elf};
use crate::domain::bundle::card::GraphShape;

/// ONNX Runtime allows one environment in a process, never a second one, not even after the first is gone.
static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static LOADING: Mutex<()> = Mutex::new(());

/// The loaded shared library.
#[derive(Debug)]
pub struct Runtime {
    environment: Environment,
    library: PathBuf,
    /// The same without links.
    resolved: PathBuf,
}

impl Runtime {
    /// Loads ONNX Runtime from the shared library at `path`, once for the process; a later call gives the same one.
    ///
    /// Errors: [`Error::Library`] when the file is missing, cut, of another machine, too old, or not the one that is
    /// already loaded.
    pub fn load(path: &Path) -> Result<&'static Runtime, Error> {
        let unusable = |problem: String| Error::Library { path: path.to_owned(), problem };
        let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = RUNTIME.get() {
            // By what is there: a path may be relative, or lead over a link.
            let same =
                runtime.library == path || std::fs::canonicalize(path).is_ok_and(|path| path == runtime.resolved);
            return if same {
                Ok(runtime)
            } else {
                Err(unusable(format!("{} is loaded already", runtime.library.display())))
            };
        }
        let mut head = Vec::new();
        let length = File::open(path)
            .and_then(|file| {
                let length = file.metadata()?.len();
                file.take(64).read_to_end(&mut head)?;
                Ok(length)
            })
            .map_err(|error| unusable(error.to_string()))?;
        if let Some(problem) = elf::problem(&head, length) {
            return Err(unusable(problem));
        }
        let environment = ort::init_from(path)
            .map_err(|error| unusable(chain(&error)))?
            .with_name("mainstay")
            .with_telemetry(false)
            .build()
            .map_err(|error| unusable(chain(&error)))?;
        // It tells every failure to the caller too, and would write text of its own between the lines of the log.
        environment.set_log_level(ort::logging::LogLevel::Fatal);
        let resolved = std::fs::canonicalize(path).map_err(|error| unusable(error.to_string()))?;
        Ok(RUNTIME.get_or_init(|| Runtime { environment, library: path.to_owned(), resolved }))
    }

    /// What ONNX Runtime says of its own build.
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }
}

/// An error with its causes, on one line: ONNX Runtime keeps what matters in `source()`.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text.replace('\n', " ")
}

fn runtime_error(error: impl std::error::Error) -> Error {
    Error::Runtime(chain(&error))
}

fn run_error(error: ort::Error) -> Error {
    Error::Run { code: format!("{:?}", error.code()), detail: chain(&error) }
}

/// One session that runs on the thread that calls it.
pub(super) struct Lane {
    session: Session,
    options: RunOptions<HasSelectedOutputs>,
    columns: usize,
    output_column: usize,
    output_columns: usize,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("columns", &self.columns).finish_non_exhaustive()
    }
}

impl Lane {
    /// A session of the ONNX graph in `bytes`.
    pub(super) fn new(runtime: &Runtime, bytes: &[u8], shape: &GraphShape) -> Result<Self, Error> {
        // No threads of its own and none that spin: a lane is as wide as the request's thread.
        let session = Session::builder(&runtime.environment)
            .and_then(|builder| Ok(builder.with_intra_threads(1)?.with_inter_threads(1)?))
            .and_then(|builder| Ok(builder.with_config_entry("session.intra_op.allow_spinning", "0")?))
            .and_then(|builder| Ok(builder.with_config_entry("session.inter_op.allow_spinning", "0")?))
            .and_then(|builder| Ok(builder.with_optimization_level(GraphOptimizationLevel::Level3)?))
            .and_then(|mut builder| builder.commit_from_memory(bytes))
            .map_err(runtime_error)?;
        // The label is a cut at .5 that nobody asked for: not computing it saves its copy.
        let options = RunOptions::new()
            .map_err(runtime_error)?
            .with_outputs(OutputSelector::no_default().with(shape.output.clone()));
        Ok(Self {
            session,
            options,
            columns: shape.columns,
            output_column: shape.output_column,
            output_columns: shape.output_columns,
        })
    }

    /// Runs the graph over `rows`, row-major, and gives `each` the raw probability of every row in order.
    pub(super) fn run(&mut self, rows: &[f32], mut each: impl FnMut(f32)) -> Result<(), Error> {
        let column = self.output_column;
        self.run_rows(rows, |row| each(row[column]))
    }

    /// Runs the graph over `rows`, row-major, and gives `each` all columns of the output of every row in order.
    pub(super) fn run_rows(&mut self, rows: &[f32], each: impl FnMut(&[f32])) -> Result<(), Error> {
        let count = rows.len() / self.columns;
        let input = TensorRef::from_array_view(([count, self.columns], rows)).map_err(run_error)?;
        let outputs = self.session.run_with_options(ort::inputs![input], &self.options).map_err(run_error)?;
        let (_, values) = outputs[0].try_extract_tensor::<f32>().map_err(run_error)?;
        if values.len() != count * self.output_columns {
            return Err(Error::Runtime(format!("{} values for {count} rows", values.len())));
        }
        values.chunks_exact(self.output_columns).for_each(each);
        Ok(())
    }
}
