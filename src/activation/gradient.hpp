// Symbolic derivatives of graphs.
#pragma once

#include "activation/graph.hpp"

namespace flexact::activation {

// The partial derivative of `graph` by a leaf: Gate, Up, Input, or the parameter of this index.
// Conventions are torch's: clamp passes its gradient at its bounds, min and max halve it at a tie,
// relu, abs and sign have 0 at 0, floor and sign have 0 everywhere, and where() passes the chosen
// side's gradient alone, whatever the other side's is.
Graph differentiate(const Graph& graph, Op leaf, int parameter);

}  // namespace flexact::activation
