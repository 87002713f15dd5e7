// The strict JSON reader: what it accepts, what it refuses and where.
#include <cmath>
#include <fstream>

#include "config/json.hpp"
#include "config_support.hpp"

namespace flexact::config {
namespace {

using config_test::expect_refused;
using config_test::resolve;

void expect_syntax_error(std::string_view text, std::string_view where, std::string_view part) {
  try {
    json::parse(text, "config");
    FAIL() << text << " accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::ConfigError);
    EXPECT_EQ(error.where(), where) << error.what();
    EXPECT_NE(std::string_view(error.what()).find(part), std::string_view::npos) << error.what();
  }
}

TEST(Json, reads_every_kind_of_value) {
  const auto document =
      json::parse(R"( {"a": null, "b": true, "c": [1, -2.5e1, "x"], "d": {"e": {}}} )", "config");
  EXPECT_TRUE(document.warnings.empty());
  const json::Value& root = document.root;
  EXPECT_TRUE(root.find("a")->is_null());
  EXPECT_TRUE(*root.find("b")->boolean());
  const json::Array& list = *root.find("c")->array();
  EXPECT_EQ(list[0].number()->integer, 1);
  EXPECT_TRUE(list[0].number()->integral);
  EXPECT_EQ(list[1].number()->value, -25);
  EXPECT_FALSE(list[1].number()->integral);
  EXPECT_EQ(*list[2].string(), "x");
  EXPECT_NE(root.find("d")->find("e")->object(), nullptr);
}

TEST(Json, refuses_what_is_not_json) {
  expect_syntax_error("", "line 1, column 1", "empty");
  expect_syntax_error("  \n ", "line 2, column 2", "empty");
  expect_syntax_error("[]", "line 1, column 1", "not a JSON object");
  expect_syntax_error("\"x\"", "line 1, column 1", "not a JSON object");
  expect_syntax_error("{\"a\": 1,}", "line 1, column 8", "trailing comma");
  expect_syntax_error("{\"a\": [1,]}", "line 1, column 9", "trailing comma");
  expect_syntax_error("{\"a\": 1} x", "line 1, column 10", "after the JSON object");
  expect_syntax_error("{\"a\":\n // c\n 1}", "line 2, column 2", "comment");
  expect_syntax_error("{'a': 1}", "line 1, column 2", "unexpected");
  expect_syntax_error("{a: 1}", "line 1, column 2", "unexpected");
  expect_syntax_error("{\"a\" 1}", "line 1, column 6", "unexpected");
  expect_syntax_error("{\"a\": tru}", "line 1, column 7", "unexpected");
  expect_syntax_error("{\"a\": ", "line 1, column 7", "ends in the middle");
  expect_syntax_error("{\"a\": \"b", "line 1, column 7", "does not end");
  expect_syntax_error("{\"a\": [1 2]}", "line 1, column 10", "unexpected");
  expect_syntax_error(std::string("{\"a\": 1}\0", 9), "line 1, column 9", "after the JSON object");
  expect_syntax_error(std::string("{\"a\": \"\0\"}", 10), "line 1, column 8", "control character");
}

TEST(Json, refuses_numbers_that_are_no_json_numbers) {
  for (std::string_view number : {"NaN", "Infinity", "-Infinity", "nan", "inf"}) {
    expect_syntax_error("{\"a\": " + std::string(number) + "}", "line 1, column 7",
                        "not a JSON number");
  }
  for (std::string_view number :
       {"01", "-01", "1.", ".5", "+1", "1e", "1e+", "-", "0x10", "1_000", "--1"}) {
    EXPECT_THROW(json::parse("{\"a\": " + std::string(number) + "}", "config"), Error) << number;
  }
}

TEST(Json, admits_infinity_only_where_published_files_have_it) {
  const json::Document document =
      json::parse("{\"text_config\": {\"time_step_limit\": [0.0, Infinity]}}", "config");
  ASSERT_EQ(document.warnings.size(), 1u);
  EXPECT_NE(document.warnings[0].find("/text_config/time_step_limit/1"), std::string::npos);
  EXPECT_THROW(json::parse("{\"time_step_limit\": [0.0, -Infinity]}", "config"), Error);
  EXPECT_THROW(json::parse("{\"time_step_limit\": NaN}", "config"), Error);
  EXPECT_THROW(json::parse("{\"time_step_limit\": [{\"beta\": Infinity}]}", "config"), Error);
}

TEST(Json, refuses_numbers_that_overflow_and_reads_tiny_ones_as_zero) {
  const std::string digits(400, '9');
  for (const std::string& number : {std::string("1e400"), std::string("-1e400"),
                                    std::string("1e99999999999999999999"), digits, digits + ".5"}) {
    expect_syntax_error("{\"a\": " + number + "}", "line 1, column 7", "overflows");
  }
  const auto number_of = [](const std::string& text) {
    return *json::parse("{\"a\": " + text + "}", "config").root.find("a")->number();
  };
  EXPECT_EQ(number_of("1e-400").value, 0);
  EXPECT_EQ(number_of("0e99999999999999999999").value, 0);
  EXPECT_EQ(number_of("0.000e-99999999999999999999").value, 0);
  EXPECT_EQ(number_of("1" + std::string(200, '0') + "e-200").value, 1);
  EXPECT_EQ(number_of("0." + std::string(400, '0') + "1e401").value, 1);
  EXPECT_EQ(number_of("1e308").value, 1e308);
  EXPECT_EQ(number_of("9223372036854775807").integer, 9223372036854775807);
  EXPECT_FALSE(number_of("9223372036854775808").fits);
  EXPECT_TRUE(std::signbit(number_of("-0").value));
}

TEST(Json, refuses_invalid_utf8_and_lone_surrogates) {
  for (std::string_view bytes : {"\xff", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80",
                                 "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xc3", "\xe2\x82"}) {
    expect_syntax_error("{\"a\": \"" + std::string(bytes) + "\"}", "line 1, column 8", "UTF-8");
  }
  for (std::string_view escape :
       {"\\ud800", "\\udc00", "\\ud800x", "\\ud800\\ud800", "\\ud800\\u0041"}) {
    expect_syntax_error("{\"a\": \"" + std::string(escape) + "\"}", "line 1, column 8",
                        "surrogate");
  }
  for (std::string_view escape : {"\\x", "\\u12", "\\u12g4", "\\u+123", "\\"}) {
    EXPECT_THROW(json::parse("{\"a\": \"" + std::string(escape) + "\"}", "config"), Error)
        << escape;
  }
  const auto text = json::parse(R"({"a": "\u00e9\ud83d\ude00\n\/é"})", "config");
  EXPECT_EQ(*text.root.find("a")->string(), "é😀\n/é");
}

TEST(Json, escaped_keys_are_the_keys_they_spell) {
  expect_refused(R"({"model_type": "llama", "hidden_\u0061ct": "gelu", "hidden_act": "silu"})",
                 "/hidden_act", "twice");
  const auto model = resolve(R"({"model_type": "llama", "hidden_\u0061ct": "gelu"})");
  EXPECT_EQ(config_test::role(model, 0, Role::Dense).name, "gelu");
}

TEST(Json, equal_duplicates_warn_and_different_ones_are_errors_at_any_level) {
  const auto model = resolve(
      R"({"model_type": "llama", "hidden_act": "silu", "x": {"y": [{"z": 1, "z": 1.0}]}, "hidden_act": "silu"})");
  EXPECT_TRUE(config_test::warns(model, "/hidden_act: the key occurs twice"));
  EXPECT_TRUE(config_test::warns(model, "/x/y/0/z: the key occurs twice"));
  expect_refused(R"({"model_type": "llama", "x": {"y": [1, {"a/b": 1, "a/b": 2}]}})", "/x/y/1/a~1b",
                 "different values");
  expect_refused(R"({"x": {"a": [1, 2], "a": [1, 3]}})", "/x/a");
  expect_refused(R"({"x": {"a": 1, "a": true}})", "/x/a");
  EXPECT_TRUE(config_test::warns(
      resolve(R"({"x": {"a": {"b": 1, "c": 2}, "a": {"c": 2, "b": 1}}})"), "/x/a"));
}

TEST(Json, a_byte_order_mark_warns) {
  const auto model = resolve("\xEF\xBB\xBF{\"model_type\": \"llama\", \"hidden_act\": \"silu\"}");
  EXPECT_TRUE(config_test::warns(model, "byte-order mark"));
  EXPECT_THROW(resolve("\xFF\xFE{\0}\0"), Error);
}

TEST(Json, depth_is_limited_to_128) {
  const auto nested = [](int depth) {
    // The root object is one level.
    return "{\"x\": " + std::string(static_cast<std::size_t>(depth - 1), '[') +
           std::string(static_cast<std::size_t>(depth - 1), ']') + "}";
  };
  EXPECT_NO_THROW(json::parse(nested(128), "config"));
  EXPECT_THROW(json::parse(nested(129), "config"), Error);
  EXPECT_THROW(json::parse(nested(5000), "config"), Error);
  EXPECT_THROW(json::parse(nested(10'000'000), "config"), Error);
  EXPECT_THROW(json::parse("{\"x\": " + std::string(5'000'000, '['), "config"), Error);
}

// With instrumented memory; tests/python/test_hostile.py has a hundred, without.
TEST(Json, ten_megabytes_are_answered) {
  constexpr std::size_t kSize = 10'000'000;
  const std::string head = R"({"model_type": "llama", "hidden_act": "silu", "x": )";
  EXPECT_NO_THROW(resolve(head + '"' + std::string(kSize, 'a') + "\"}"));
  EXPECT_NO_THROW(resolve(head + std::string(kSize, ' ') + "1}"));
  std::string list = head + "[";
  list.reserve(kSize);
  while (list.size() < kSize) list += "1,";
  EXPECT_THROW(resolve(list + "1]}"), Error);
  EXPECT_THROW(resolve(list), Error);
}

TEST(Json, messages_stay_short_and_printable) {
  EXPECT_EQ(json::quote("a\"b\n\x01"), "\"a\\\"b\\u000a\\u0001\"");
  const std::string huge = json::quote(std::string(1000, 'x'));
  EXPECT_LT(huge.size(), 100u);
  try {
    resolve(config_test::config("llama", "\"hidden_act\": \"" + std::string(100000, 'z') + '"'));
    FAIL();
  } catch (const Error& error) {
    EXPECT_LT(std::string(error.what()).size(), 1000u);
  }
  EXPECT_EQ(json::brief(json::parse(R"({"a": [1, 2.0, "x", null, true]})", "config").root),
            R"({"a": [1, 2.0, "x", null, true]})");
}

TEST(Json, pointers_are_escaped) {
  EXPECT_EQ(json::join("/a", "b~/c"), "/a/b~0~1c");
  EXPECT_EQ(json::join("", std::size_t{3}), "/3");
}

TEST(ConfigFile, is_a_folder_or_a_regular_file) {
  const auto folder = std::filesystem::path(::testing::TempDir()) / "flexact_config_file";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << R"({"model_type": "llama", "num_hidden_layers": 3})";
  EXPECT_EQ(resolve_config(folder).layers.size(), 3u);
  EXPECT_EQ(resolve_config(folder / "config.json").layers.size(), 3u);
  const auto code = [](const std::filesystem::path& path) {
    try {
      resolve_config(path);
    } catch (const Error& error) {
      EXPECT_EQ(error.where(), path.string());
      return error.code();
    }
    return ErrorCode::InternalError;
  };
  EXPECT_EQ(code(folder / "none.json"), ErrorCode::IoError);
  EXPECT_EQ(code("/dev/zero"), ErrorCode::IoError);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace flexact::config
