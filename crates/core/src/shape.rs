//! Names, roles and sizes of projections.

/// The part a projection plays in its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Attention queries.
    Query,
    /// Attention keys.
    Key,
    /// Attention values.
    Value,
    /// Queries, keys and values in one matrix, in this order of rows.
    QueryKeyValue,
    /// The output projection of attention.
    AttentionOutput,
    /// A low-rank factor of latent attention.
    Latent,
    /// The gate of a gated MLP.
    Gate,
    /// The other factor of a gated MLP.
    Up,
    /// Gate and up in one matrix, gate rows first.
    GateUp,
    /// The output projection of an MLP.
    Down,
}

/// Name, role and size of a projection: enough to check a recipe before any weight is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerShape {
    /// Module name within the block, for example `mlp.down_proj`.
    pub name: String,
    /// The part it plays.
    pub role: Role,
    /// Layers with the same unit belong to one MLP (experts have a unit each).
    pub unit: usize,
    /// Which statistics describe its input: layers with the same site read the same tensor.
    pub site: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
}
