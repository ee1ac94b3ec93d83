// Findings: what the checks report, each distinct one once.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

struct Finding {
  char kind[32], file[128], text[384];
  int line;
};
static Finding findings[MAX_FINDINGS];
static int count;
static char failure_text[256];
static char output[MAX_FINDINGS * sizeof(Finding)];

const char* base_name(const char* path) {
  const char* slash = path ? strrchr(path, '/') : nullptr;
  return slash ? slash + 1 : path ? path : "?";
}

static int by_pc(const void* a, const void* b) {
  const uintptr_t x = (uintptr_t)((const msl_source_line*)a)->pc,
                  y = (uintptr_t)((const msl_source_line*)b)->pc;
  return x < y ? -1 : x > y;
}

Where where_is(const void* pc) {
  static bool sorted;
  if (!sorted) qsort(msl_source_lines, msl_source_line_count, sizeof(msl_source_line), by_pc);
  sorted = true;
  uint64_t low = 0, high = msl_source_line_count;
  while (low < high) {
    const uint64_t middle = (low + high) / 2;
    if (msl_source_lines[middle].pc < pc)
      low = middle + 1;
    else
      high = middle;
  }
  if (low == msl_source_line_count || msl_source_lines[low].pc != pc) return {"?", 0};
  return {msl_source_lines[low].file, (int)msl_source_lines[low].line};
}

// One finding per kind and line: a kernel with one mistake should give one line, not a thousand.
void report(const char* kind, Where where, const char* format, ...) {
  const char* file = base_name(where.file);
  for (int i = 0; i < count; i++) {
    const Finding& f = findings[i];
    if (f.line == where.line && !strcmp(f.kind, kind) && !strcmp(f.file, file)) return;
  }
  if (count == MAX_FINDINGS) return;
  Finding& f = findings[count++];
  snprintf(f.kind, sizeof f.kind, "%s", kind);
  snprintf(f.file, sizeof f.file, "%s", file);
  f.line = where.line;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(f.text, sizeof f.text, format, arguments);
  va_end(arguments);
}

void fail(const char* format, ...) {
  if (failure_text[0]) return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(failure_text, sizeof failure_text, format, arguments);
  va_end(arguments);
}

void findings_clear() {
  count = 0;
  failure_text[0] = 0;
}
int findings_count() { return count; }
const char* failure() { return failure_text; }

MSL_API const char* msl_findings() {  // kind TAB file TAB line TAB text, one a line
  size_t at = 0;
  output[0] = 0;
  for (int i = 0; i < count; i++) {
    const Finding& f = findings[i];
    at += snprintf(output + at, sizeof output - at, "%s\t%s\t%d\t%s\n", f.kind, f.file, f.line,
                   f.text);
  }
  return output;
}
MSL_API const char* msl_failure() { return failure_text; }
