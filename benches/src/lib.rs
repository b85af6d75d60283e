//! Shared inputs of the criterion suite.
