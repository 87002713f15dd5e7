// Graphs and parsed expressions as text of the expression language.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "activation/ast.hpp"
#include "activation/graph.hpp"

namespace flexact::activation {

// The graph in the expression language: parsing the text builds the same graph. What is used more
// than once and is longer than a few words becomes a definition (t0, t1, …).
std::string to_text(const Graph& graph, std::span<const std::string> parameters);

// What was parsed, spaced and bracketed in one way, definitions kept. `input` replaces x, and
// `suffix` ("*u") multiplies the value.
std::string to_text(const Ast& ast, std::string_view input = "x", std::string_view suffix = {});

// "gated(alpha,limit): TEXT"
std::string canonical_text(const Graph& graph, std::span<const std::string> parameters);

// The graph one operation a line, with the number of each value: what a backend sees.
std::string listing(const Graph& graph, std::span<const std::string> parameters);

}  // namespace flexact::activation
