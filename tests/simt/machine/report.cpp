// Where things are in this library, and what a report says.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>

#include "machine.h"

namespace simt {

Image image;

namespace {

// Makes the calling thread's copy of the thread-local storage exist.
thread_local volatile char storage_exists;

}  // namespace

Image find_image() {
  storage_exists = 1;
  Dl_info self;
  dladdr(reinterpret_cast<const void*>(&find_image), &self);
  Image image;
  image.begin = reinterpret_cast<uintptr_t>(self.dli_fbase);
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        Image& image = *static_cast<Image*>(data);
        if (info->dlpi_addr != image.begin) return 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const ElfW(Phdr)& part = info->dlpi_phdr[i];
          if (part.p_type == PT_LOAD) {
            image.bytes = std::max<size_t>(image.bytes, part.p_vaddr + part.p_memsz);
          } else if (part.p_type == PT_TLS) {
            image.shared = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
            image.shared_bytes = part.p_memsz;
          }
        }
        return 1;
      },
      &image);
  return image;
}

std::string told(uint3 i) {
  std::ostringstream text;
  text << '(' << i.x << ',' << i.y << ',' << i.z << ')';
  return text.str();
}

std::string short_name(const char* file) {
  const char* slash = std::strrchr(file, '/');
  return slash ? slash + 1 : file;
}

std::string told(Site site) { return short_name(site.file_name()) + ':' + std::to_string(site.line()); }

void stop(Thread& thread) {
  m.failed = true;
  for (;;) pause(thread);
}

namespace {

// The function and "file:line" of an address in this library.
struct Symbol {
  std::string function, line;
};

Symbol symbol(const void* pc) {
  Dl_info library;
  if (!dladdr(const_cast<void*>(pc), &library)) return {"?", "?"};
  std::ostringstream command;
  command << "addr2line -C -f -e '" << library.dli_fname << "' 0x" << std::hex
          << static_cast<const char*>(pc) - static_cast<const char*>(library.dli_fbase);
  Symbol found{"?", "?"};
  if (FILE* out = popen(command.str().c_str(), "r")) {
    char line[4096];
    const auto read = [&](std::string& to) {
      if (std::fgets(line, sizeof(line), out)) to.assign(line, std::strcspn(line, "\n"));
    };
    read(found.function);
    read(found.line);
    pclose(out);
  }
  found.line = short_name(found.line.substr(0, found.line.find(" (")).c_str());
  return found;
}

// A return address lies behind its call.
std::string line_of(const void* pc) { return symbol(static_cast<const char*>(pc) - 1).line; }

}  // namespace

bool failed() { return m.failed; }

const char* take_report() {
  static std::string text;
  text = m.report;
  if (m.pc) text += ", at " + line_of(m.pc);
  if (m.earlier_pc) text += "; the earlier access is at " + line_of(m.earlier_pc);
  text += "; in kernel " + symbol(m.kernel).function;
  m.failed = false;
  return text.c_str();
}

}  // namespace simt
