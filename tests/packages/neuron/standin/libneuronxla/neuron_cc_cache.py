"""A cache of compiled graphs that keeps none."""


class CacheUrl:
    def __init__(self, cache_dir):
        self.cache_dir = cache_dir

    @classmethod
    def get_cache_url(cls, cache_dir=None):
        return cls(cache_dir)

    def is_s3(self):
        return False


class CompileCache:
    def __init__(self, cache_url):
        self.cache_url = cache_url


class CompileCacheFs(CompileCache):
    pass


class CompileCacheS3(CompileCache):
    pass


def create_compile_cache(cache_url):
    return CompileCacheFs(cache_url)
