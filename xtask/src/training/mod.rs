//! What the commands that train share.
//!
//! | module | what it does |
//! | --- | --- |
//! | `config` | the file that describes a run from scratch |
//! | `run` | the loop: steps, log, checkpoints, evaluation |
//! | `source` | where the rows of a step come from |
//! | `taught` | a run that learns from a text and a teacher |
//! | `repeats` | rows in which text stands again |
//! | `texts` | what is read and what is held out |
//! | `folder` | where a run keeps its state |
//! | `curve` | its losses as a drawing |

pub(crate) mod config;
pub(crate) mod curve;
pub(crate) mod folder;
pub(crate) mod repeats;
pub(crate) mod run;
pub(crate) mod source;
pub(crate) mod taught;
pub(crate) mod texts;
