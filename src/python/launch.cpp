// The launch policy of GPU kernels: the table of measured launches, and the model.
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "flexact/moe.hpp"
#include "module.hpp"
#include "moe/launch_policy.hpp"

namespace flexact::python {

void bind_launch(nb::module_& module) {
  using moe::GpuLimits;
  using moe::Launch;
  using moe::LaunchTable;
  using moe::Tile;
  nb::class_<Tile>(module, "Tile", "One GEMM's tile shape.")
      .def(
          "__init__",
          [](Tile* self, int block_m, int block_n, int block_k, int group_m, int warps, int stages,
             int persistent) {
            new (self) Tile{block_m, block_n, block_k, group_m, warps, stages, persistent};
          },
          nb::kw_only(), nb::arg("block_m"), nb::arg("block_n"), nb::arg("block_k"),
          nb::arg("group_m") = 1, nb::arg("warps") = 4, nb::arg("stages") = 3,
          nb::arg("persistent") = 0)
      .def_ro("block_m", &Tile::block_m)
      .def_ro("block_n", &Tile::block_n)
      .def_ro("block_k", &Tile::block_k)
      .def_ro("group_m", &Tile::group_m)
      .def_ro("warps", &Tile::warps)
      .def_ro("stages", &Tile::stages)
      .def_ro("persistent", &Tile::persistent);
  nb::class_<Launch>(module, "Launch", "How the kernels of one call are launched.")
      .def_ro("direct", &Launch::direct)
      .def_ro("vector", &Launch::vector)
      .def_ro("fuse_combine", &Launch::fuse_combine)
      .def_ro("permute", &Launch::permute)
      .def_ro("gate_up", &Launch::gate_up)
      .def_ro("down", &Launch::down)
      .def_ro("source", &Launch::source);
  nb::class_<LaunchTable>(module, "LaunchTable",
                          "Measured launches of one device; what was not measured goes by a model.")
      .def(nb::init<>())
      .def_static("from_json", &LaunchTable::from_json, nb::arg("text"))
      .def_prop_ro("device", &LaunchTable::device)
      .def("__len__", &LaunchTable::size)
      .def(
          "choose",
          [](const LaunchTable& self, const MoeProblem& problem, std::int64_t tokens,
             int multiprocessors, int shared_bytes) {
            return self.choose(problem, tokens, GpuLimits{multiprocessors, shared_bytes});
          },
          nb::arg("problem"), nb::arg("tokens"), nb::arg("multiprocessors") = 132,
          nb::arg("shared_bytes") = 232448)
      .def(
          "all",
          [](const LaunchTable& self, const MoeProblem& problem, std::int64_t tokens,
             int multiprocessors, int shared_bytes) {
            return self.all(problem, tokens, GpuLimits{multiprocessors, shared_bytes});
          },
          nb::arg("problem"), nb::arg("tokens"), nb::arg("multiprocessors") = 132,
          nb::arg("shared_bytes") = 232448,
          "The distinct launches of all token counts up to `tokens`: what a warm-up compiles.");
  module.def(
      "chunking",
      [](const MoeProblem& problem, std::int64_t tokens) {
        const moe::Chunking result = moe::chunking(problem, tokens);
        return std::vector<std::int64_t>{result.tokens, result.columns};
      },
      nb::arg("problem"), nb::arg("tokens"),
      "[tokens in a chunk, output columns in a slab]: what bounds the scratch memory.");
  module.def("token_bucket", &moe::token_bucket, nb::arg("tokens"));
}

}  // namespace flexact::python
