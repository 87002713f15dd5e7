// conformance test    every backend × variant × function × pairing × format against fp64, with
// sizes and
//                     options from a covering array, on poisoned memory
// conformance matrix  the same, and writes what is claimed and what is proven
// conformance bench   what each function costs inside the block
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <string>

#include "bench.hpp"
#include "case.hpp"
#include "flexact/error.hpp"
#include "matrix.hpp"
#include "runner.hpp"

namespace flexact::conformance {
namespace {

struct TestOptions {
  std::string only;  // BACKEND/VARIANT/FUNCTION/PAIRING/FORMAT/ROW, or a part of it
  int rows = 12;     // of the covering array for each cell; 0: all
  std::string fault = "none";
  bool expect_failures = false;
  bool verbose = false;
  bool gpu = false;
  std::string json;
};

Fault parse_fault(const std::string& name) {
  if (name == "none") return Fault::None;
  if (name == "zeros") return Fault::Zeros;
  if (name == "function") return Fault::Function;
  if (name == "gate_and_up") return Fault::GateAndUp;
  if (name == "expert") return Fault::Expert;
  throw Error(ErrorCode::InvalidArgument, "no fault '" + name + "'", "--fault",
              "none, zeros, function, gate_and_up or expert");
}

// All rows in the order in which this cell runs them: each starts elsewhere, so that together cells
// run all of them many times, whatever the number of rows has in common with the step.
std::vector<int> rows_of_cell(std::size_t cell) {
  const std::size_t total = covering_options().size(), step = 7;
  const std::size_t first = cell * step + cell / (total / std::gcd(total, step));
  std::vector<int> rows;
  for (std::size_t i = 0; i < total; ++i) rows.push_back(static_cast<int>((first + i) % total));
  return rows;
}

// True where no backend takes the cell, whatever the options.
bool refused_everywhere(const Case& test, const std::vector<Variant>& all) {
  return std::all_of(all.begin(), all.end(), [&](const Variant& variant) {
    return variant.backend->refuse(test.problem(), test.function()).has_value();
  });
}

struct Report {
  Matrix matrix;
  int unexpected = 0;
  int found = 0;
  double worst = 0;
  std::string worst_case;
};

// What a case has shown; without tokens nothing.
enum class Shown { NotRun, Nothing, Something };

Shown run_case(const Case& test, const std::vector<Variant>& all, const TestOptions& options,
               Fault fault, Report& report) {
  std::optional<Prepared> prepared;
  Shown shown = Shown::NotRun;
  for (const Variant& variant : all) {
    const std::string id = variant.backend->name() + "/" + variant.name + "/" + test.id();
    if (!options.only.empty() && (id + "/").find(options.only + "/") == std::string::npos) continue;
    if (!prepared) prepared.emplace(test);
    const Outcome outcome = run(*prepared, variant, fault);
    if (outcome.kind == Outcome::Kind::Skipped) continue;
    if (shown == Shown::NotRun) shown = Shown::Nothing;
    if (prepared->expected.size > 0 || outcome.kind == Outcome::Kind::Refused) {
      shown = Shown::Something;
    }
    report.matrix.add(test, variant, outcome);
    if (outcome.worst > report.worst && outcome.kind == Outcome::Kind::Passed) {
      report.worst = outcome.worst;
      report.worst_case = id;
    }
    const bool failed = outcome.kind == Outcome::Kind::Failed;
    if (failed) ++report.found;
    const bool wrong = options.expect_failures ? outcome.kind == Outcome::Kind::Passed : failed;
    if (wrong) ++report.unexpected;
    if (options.verbose || (wrong && report.unexpected <= 20)) {
      const char* kinds[] = {"passed", "FAILED", "refused", "skipped"};
      std::printf("%s %s\n  %s\n", kinds[static_cast<int>(outcome.kind)], id.c_str(),
                  test.describe().c_str());
      if (!outcome.message.empty()) std::printf("  %s\n", outcome.message.c_str());
      if (wrong) {
        std::printf("  rerun: conformance test --rows 0 --only %s%s\n", id.c_str(),
                    fault == Fault::None ? "" : (" --fault " + options.fault).c_str());
      }
    }
  }
  return shown;
}

int test(const TestOptions& options, const std::string& json, const std::string& page,
         const std::string& command) {
  const auto begin = std::chrono::steady_clock::now();
  const Fault fault = parse_fault(options.fault);
  const std::vector<Variant> all = variants();
  const std::vector<Subject> functions = subjects();
  Report report;
  for (const Backend* backend : backends()) {
    if (backend->name() == "triton") continue;
    if (const auto wrong = check_refusals(*backend)) {
      std::printf("FAILED %s: %s\n", backend->name().c_str(), wrong->c_str());
      ++report.unexpected;
    }
  }
  std::size_t cell = 0;
  for (const Subject& subject : functions) {
    for (Pairing pairing : pairings_of(subject.function)) {
      for (Format format : all_formats()) {
        ++cell;
        const std::vector<int> rows = rows_of_cell(cell);
        int count = options.rows > 0 ? options.rows : static_cast<int>(rows.size());
        // What every backend refuses is asked once.
        if (refused_everywhere({&subject, pairing, format, rows[0]}, all)) count = 1;
        // A cell whose rows have no tokens runs one more.
        Shown shown = Shown::NotRun;
        for (int i = 0; i < static_cast<int>(rows.size()); ++i) {
          if (i >= count && shown != Shown::Nothing) break;
          const int row = rows[static_cast<std::size_t>(i)];
          shown = std::max(shown,
                           run_case({&subject, pairing, format, row}, all, options, fault, report));
        }
      }
    }
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  const Matrix& matrix = report.matrix;
  std::printf("%d passed, %d failed, %d refused; %zu rows of options, %.1f s\n", matrix.passed(),
              matrix.failed(), matrix.refused(), covering_options().size(), taken.count());
  if (fault == Fault::None) {
    std::printf("largest difference: %.2f of its bound, %s\n", report.worst,
                report.worst_case.c_str());
  }
  if (matrix.passed() + matrix.failed() == 0) {
    std::printf("nothing ran\n");
    return 1;
  }
  if (!json.empty()) matrix.write_json(json, command);
  if (!page.empty()) matrix.write_page(page, json.substr(json.rfind('/') + 1), command);
  return report.unexpected == 0 ? 0 : 1;
}

int main_checked(int argc, char** argv) {
  CLI::App app("Compares every backend with fp64 and writes the support matrix");
  app.require_subcommand(1);
  TestOptions tested;
  std::string json = "docs/support_matrix.json", page = "docs/support-matrix.md";
  BenchOptions timed;

  CLI::App& test_command = *app.add_subcommand("test", "Run the comparisons");
  test_command.add_option(
      "--only", tested.only,
      "A case, or the last or middle part of its name: cpu/avx2/swiglu/concat/bf16/3");
  test_command.add_option("--rows", tested.rows, "Option rows for each cell; 0: all")
      ->capture_default_str();
  test_command.add_option("--fault", tested.fault,
                          "Make a mistake on purpose: zeros, function, gate_and_up, expert");
  test_command.add_flag("--expect-failures", tested.expect_failures,
                        "Succeed where every run fails");
  test_command.add_flag("-v,--verbose", tested.verbose, "Print every run");

  test_command.add_flag("--gpu", tested.gpu, "The kernels of a GPU, with sizes around their tiles");
  test_command.add_option("--json", tested.json, "Where the support data goes");

  CLI::App& matrix_command =
      *app.add_subcommand("matrix", "Run the comparisons and write the support matrix");
  matrix_command.add_option("--rows", tested.rows, "Option rows for each cell; 0: all")
      ->capture_default_str();
  matrix_command.add_option("--json", json, "Where the data goes")->capture_default_str();
  matrix_command.add_option("--page", page, "Where the page goes")->capture_default_str();

  CLI::App& bench_command = *app.add_subcommand("bench", "Time the block with each function");
  bench_command.add_option("--variant", timed.variant,
                           "avx2, avx512bf16, …; the best one by default");
  bench_command.add_option("--function", timed.function, "One function beside the identity");
  bench_command.add_option("--experts", timed.experts)->capture_default_str();
  bench_command.add_option("--top-k", timed.top_k)->capture_default_str();
  bench_command.add_option("--hidden", timed.hidden)->capture_default_str();
  bench_command.add_option("--intermediate", timed.intermediate)->capture_default_str();
  bench_command.add_option("--tokens", timed.tokens)->capture_default_str();
  bench_command.add_option("--rounds", timed.rounds)->capture_default_str();
  bench_command.add_option("--out,--json", timed.output, "Where the results go");

  CLI11_PARSE(app, argc, argv);
  if (bench_command) return bench(timed);
  if (matrix_command)
    return test(tested, json, page, "conformance matrix --rows " + std::to_string(tested.rows));
  if (tested.gpu) use_gpu_cases();
  return test(tested, tested.json, "",
              "conformance test --gpu --rows " + std::to_string(tested.rows));
}

}  // namespace
}  // namespace flexact::conformance

int main(int argc, char** argv) {
  try {
    return flexact::conformance::main_checked(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "conformance: %s\n", error.what());
    return 2;
  }
}
